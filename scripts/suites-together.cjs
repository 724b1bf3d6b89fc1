/*
 * Several files of tests in one process: `node suites-together.cjs FILE…`, started by run-tests.ts. Node,
 * and what the files of one room import, are loaded once for all of them; that is most of what a quick file
 * takes. A file begins with a test that has its path as name, by which its tests are known from those of the
 * file before; one that cannot be loaded fails as that test. Its tests see `process.argv[1]` as if node had
 * been started with it.
 *
 * Loaded with require, so that all tests are there before the first one runs: what is loaded while a test
 * runs would be within that test.
 */
const { resolve } = require('node:path');
const { test } = require('node:test');

for (const path of process.argv.splice(2)) {
  const file = resolve(path);
  let failed = null;
  test(path, () => {
    process.argv[1] = file;
    if (failed !== null) throw failed.error;
  });
  process.argv[1] = file;
  try {
    require(file);
  } catch (error) {
    failed = { error };
  }
}
