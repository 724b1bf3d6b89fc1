/**
 * What is used of node:http. An `import` of it evaluates all that it exports, of which some brings the whole
 * of undici: half of the processor time in which a command of godwit starts. Types are imported from it as
 * usual.
 */
export const { Agent, createServer, request } = process.getBuiltinModule('node:http');
