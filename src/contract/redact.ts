const SECRET_KEY = /secret|password|token|credential/i;

/**
 * A copy of a JSON value with every string under a key that names a secret replaced by `***`. Runs keep their
 * inputs, and the input of a move holds the CHAP secret of its grant: it must not leave the worker through a
 * listing.
 */
export function redact(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(redact);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key,
      SECRET_KEY.test(key) && typeof inner === 'string' ? '***' : redact(inner),
    ]),
  );
}
