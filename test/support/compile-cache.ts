import { fileURLToPath } from 'node:url';

// Processes of all tests share what was compiled, and what types were stripped from; a folder of a test's own
// would make each start cold.
process.env.NODE_COMPILE_CACHE ??= fileURLToPath(
  new URL('../../node_modules/.cache/compile', import.meta.url),
);
