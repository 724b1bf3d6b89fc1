import { fstatSync, ftruncateSync, writeSync } from 'node:fs';
import type { Clock } from './clock.ts';
import { systemErrorCode } from './errors.ts';
import type { Logger } from './logger.ts';

/** The levels of pino, so that one reader understands both. */
const LEVELS = { debug: 20, info: 30, warn: 40, error: 50 } as const;
/**
 * A log that is a file is begun anew when it has become so long: nobody rotates it, and what writes it lives
 * for years.
 */
const FILE_BYTES_MAX = 4 * 1024 * 1024;

/**
 * Log lines as pino writes them (JSON with level, time, msg), without pino: for processes of which there are
 * many and whose memory counts. Lines are written at once, so the last one before a crash is there. `fd`: of
 * a file it was opened for appending.
 */
export function lineLogger(fd: number, clock: Clock, fields: object = {}): Logger {
  const write = (level: keyof typeof LEVELS) => (more: object, msg: string) => {
    const line = `${JSON.stringify({ level: LEVELS[level], time: clock.wallMs(), ...fields, ...more, msg })}\n`;
    try {
      const file = fstatSync(fd);
      if (file.isFile() && file.size > FILE_BYTES_MAX) ftruncateSync(fd, 0);
      writeSync(fd, line);
    } catch (error) {
      // A log that takes nothing (full disk, reader gone) must not end the process that writes it.
      if (systemErrorCode(error) === undefined) throw error;
    }
  };
  return {
    debug() {},
    info: write('info'),
    warn: write('warn'),
    error: write('error'),
    child: (more) => lineLogger(fd, clock, { ...fields, ...more }),
  };
}
