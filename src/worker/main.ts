import { readFileSync } from 'node:fs';
import pino from 'pino';
import { systemClock } from '../base/clock.ts';
import { logDestination } from '../base/log-destination.ts';
import type { Logger } from '../base/logger.ts';
import { systemRandom } from '../base/random.ts';
import { keepOutOfDumps } from '../sys/secret-memory.ts';
import { requireLastingData } from './data-folder.ts';
import { systemEdges } from './edges.ts';
import { HOST_PARTS } from './host-parts.ts';
import { MOVE_PARTS } from './move-parts.ts';
import type { RunningWorker, WorkerOptions } from './options.ts';
import { assemble } from './part.ts';
import type { Given, HostParts, MoveParts, SurfaceParts } from './parts.ts';
import { PLANES } from './planes.ts';
import { SURFACE_PARTS } from './surface-parts.ts';

/**
 * One worker, put together of its parts: records first, then what runs, the API, and last the journal's runs;
 * so that whoever can ask finds everything in place. Rejects `WORKER_ALREADY_RUNS` when another process has
 * the data folder, `WORKER_DATA_NOT_KEPT` where it would not keep its data.
 */
export async function startWorker(options: WorkerOptions): Promise<RunningWorker> {
  const logger: Logger = pino({ level: options.logLevel, base: { worker: options.name } }, logDestination(2));
  // New volumes and new keys: this process holds them while it makes the header.
  if (options.keys !== null) keepOutOfDumps();
  await PLANES[options.plane].requireHost();
  const fleeting = requireLastingData(options.dataDir);
  if (fleeting !== null) logger.warn({ dataDir: options.dataDir }, fleeting);
  const { parts, close } = await assemble<Given, HostParts & MoveParts & SurfaceParts>(
    { ...HOST_PARTS, ...MOVE_PARTS, ...SURFACE_PARTS },
    {
      options,
      clock: systemClock,
      random: systemRandom,
      logger,
      version: packageVersion(),
      environment: process.env,
      edges: systemEdges,
    },
  );
  const { url } = parts.api;
  logger.info({ url, dataDir: options.dataDir, keyFingerprint: parts.key.fingerprint }, 'worker is up');
  return {
    url,
    async close() {
      await close();
      logger.info({}, 'worker ends; machines go on');
    },
  };
}

function packageVersion(): string {
  const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  return manifest.version;
}
