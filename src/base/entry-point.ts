/**
 * Where a process or a thread of its own begins: `module` (`name.ts`) relative to `base`, the URL of the module that asks. Sources are TypeScript in a checkout and
 * JavaScript in the package (scripts/pack), since Node runs no TypeScript below node_modules.
 */
export function entryPoint(module: string, base: string): URL {
  return new URL(base.endsWith('.js') ? module.replace(/\.ts$/, '.js') : module, base);
}
