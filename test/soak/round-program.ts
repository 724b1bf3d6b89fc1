import { pathToFileURL } from 'node:url';
import type { SoakModule } from './soaks.ts';

/**
 * One round of a soak that is a module: MODULE MINUTES SEED FOLDER. Its own process, so that one that hangs
 * can be ended.
 */
const [module = '', minutes, seed, stateFolder = ''] = process.argv.slice(2);
const { run } = (await import(new URL(module, pathToFileURL(`${import.meta.dirname}/`)).href)) as SoakModule;
await run({ minutes: Number(minutes), seed: Number(seed), stateFolder, log: (line) => console.log(line) });
