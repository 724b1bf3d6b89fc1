import { GodwitError } from '../base/errors.ts';
import { isOwnName, NODE_NAME } from '../base/own-name.ts';
import { PROOF_RANGES_MAX } from '../receipt/range.ts';

const RANGES_MAX = 2 * PROOF_RANGES_MAX;

export function badSpec(reason: string, cause?: unknown): GodwitError {
  return new GodwitError('VOLUME_BAD_SPEC', `a volume server cannot take this: ${reason}`, {
    nextAction: 'The shim and the volume server must be of the same godwit version.',
    cause,
  });
}

export function list(value: unknown, what: string): unknown[] {
  if (Array.isArray(value) && value.length <= RANGES_MAX) return value;
  throw badSpec(`${what} does not fit`);
}

export function digestText(value: unknown): string {
  const digest = text(value, 'digest');
  if (/^[0-9a-f]{64}$/.test(digest)) return digest;
  throw badSpec('digest does not fit');
}

export function object(value: unknown, what: string): Record<string, unknown> {
  if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
  throw badSpec(`${what} is not an object`);
}

export function text(value: unknown, what: string, lengthMin = 0): string {
  if (typeof value === 'string' && value.length >= lengthMin) return value;
  throw badSpec(`${what} does not fit`);
}

export function ownName(value: unknown, what: string): string {
  if (isOwnName(value)) return value;
  throw badSpec(`${what} does not fit`);
}

export function nodeName(value: unknown, what: string): string {
  if (typeof value === 'string' && NODE_NAME.test(value)) return value;
  throw badSpec(`${what} does not fit`);
}

export function flag(value: unknown, what: string): boolean {
  if (typeof value === 'boolean') return value;
  throw badSpec(`${what} does not fit`);
}

export function integer(
  value: unknown,
  minimum: number,
  what: string,
  maximum = Number.MAX_SAFE_INTEGER,
): number {
  if (Number.isInteger(value) && (value as number) >= minimum && (value as number) <= maximum)
    return value as number;
  throw badSpec(`${what} does not fit`);
}

export function oneOf<T extends string>(value: unknown, choices: readonly T[], what: string): T {
  const choice = choices.find((one) => one === value);
  if (choice !== undefined) return choice;
  throw badSpec(`${what} does not fit`);
}
