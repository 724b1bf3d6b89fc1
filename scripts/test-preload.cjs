/*
 * Loaded before each file of tests. To know which test an error without a handler is of, node:test follows every promise of the process (async hooks): a
 * promise then costs thirty times as much, and simulations make hundreds of thousands. Without it such an error fails the file rather than one of its
 * tests, and is printed here with its stack. What is no promise (timers, sockets, the tests themselves) is followed as ever.
 */
const hooks = require('node:async_hooks');
const { isMainThread } = require('node:worker_threads');

if (isMainThread) {
  const { createHook } = hooks;
  hooks.createHook = (callbacks) => createHook({ ...callbacks, trackPromises: false });
  const tell = (kind) => (error) => console.error(`${kind}:`, error);
  process.on('unhandledRejection', tell('a promise was rejected, and nobody had asked for it'));
  process.on('uncaughtExceptionMonitor', (error, origin) => {
    if (origin === 'uncaughtException') tell('an error that nobody caught')(error);
  });
}
