import { createHash } from 'node:crypto';

/*
 * W3C Trace Context, level 1: the header `traceparent` of what one worker asks another for a run. Both sides
 * derive the trace from the run's id, so that nothing need be remembered, and a worker that does not know the
 * header loses nothing.
 *
 *     version "-" trace-id "-" parent-id "-" trace-flags       all in lower-case hex: 2, 32, 16 and 2 digits
 */

export const TRACEPARENT = 'traceparent';

export type TraceContext = { traceId: string; parentId: string; sampled: boolean };

/** Of whatever belongs to a run: 32 hex digits, not all nought. */
export function traceIdOf(runId: string): string {
  return createHash('sha256').update(`trace ${runId}`).digest('hex').slice(0, 32);
}

/** The header of a question that is asked for a run. */
export function traceparentOf(runId: string): string {
  const parentId = createHash('sha256').update(`span ${runId}`).digest('hex').slice(0, 16);
  return `00-${traceIdOf(runId)}-${parentId}-01`;
}

const FORM = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/s;

/**
 * Null for what is none, which counts as if it were not there (section 3.2.2): another form, upper case,
 * version ff, ids of noughts, and more than the four fields where the version is 00. Of a later version its
 * first four fields count. Pure.
 */
export function parseTraceparent(header: unknown): TraceContext | null {
  if (typeof header !== 'string' || header.length > 512) return null;
  const [, version, traceId, parentId, flags, rest] = FORM.exec(header) ?? [];
  if (version === undefined || traceId === undefined || parentId === undefined || flags === undefined)
    return null;
  if (version === 'ff' || (version === '00' && rest !== undefined)) return null;
  if (/^0+$/.test(traceId) || /^0+$/.test(parentId)) return null;
  return { traceId, parentId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}
