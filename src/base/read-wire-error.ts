import type { ErrorValues, Retry, WireError } from './errors.ts';

/**
 * An error that another process sent, of whatever version, or made up by whoever answers there; null: it is
 * none. Values that are no plain ones are left out. Pure.
 */
export function readWireError(value: unknown): WireError | null {
  if (typeof value !== 'object' || value === null) return null;
  const { code, message, values, nextAction, retry } = value as Partial<Record<keyof WireError, unknown>>;
  if (typeof code !== 'string' || typeof message !== 'string' || typeof nextAction !== 'string') return null;
  const said = typeof retry === 'string' && { retry: retry as Retry };
  return { code, message, values: plainValues(values), nextAction, ...said };
}

function plainValues(values: unknown): ErrorValues {
  if (typeof values !== 'object' || values === null || Array.isArray(values)) return {};
  const isPlain = (value: unknown) =>
    value === null || ['string', 'number', 'boolean'].includes(typeof value);
  return Object.fromEntries(Object.entries(values).filter(([, value]) => isPlain(value)));
}
