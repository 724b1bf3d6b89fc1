/**
 * HTTP status of an error code. The codes are the contract; the status is for generic clients, so one rule
 * for each family of names is enough, and only what no rule fits is listed one by one.
 */
const EXACT: Readonly<Record<string, number>> = {
  API_UNAUTHORIZED: 401,
  API_CERTIFICATE_REQUIRED: 403,
  API_TLS_REQUIRED: 400,
  API_TLS_REFUSED: 502,
  API_NO_ROUTE: 404,
  API_TOO_LARGE: 413,
  API_BAD_REPLY: 502,
  API_WRONG_WORKER: 421,
  API_UNREACHABLE: 502,
  INTERNAL: 500,
  WORKER_VOLUME_SERVED: 409,
  WORKER_SERVE_IN_CLEAR: 400,
  WORKER_MOVE_TO_ITSELF: 409,
  MACHINE_RUNNING: 409,
  MACHINE_NO_VOLUME: 409,
  MACHINE_UNKNOWN_USER: 400,
  MIGRATION_NO_SUBJECT: 404,
  CLONE_PROOF_GOES_ON: 409,
  SYS_PATH_REFUSED: 400,
  MIGRATION_TARGET_HAS_IT: 409,
  MIGRATION_TARGET_NEEDS_BLOCKS: 409,
  MIGRATION_TARGET_UNASKED: 409,
  MIGRATION_SOURCE_TOOK_BACK: 409,
  RPC_CLOSED: 502,
  ATTACH_NO_FUSE: 501,
  HOST_NO_LOOP: 501,
  ATTACH_NO_RESEND: 501,
};

/** First match wins. Matched against the code without its room, e.g. `NOT_FOUND` of `MACHINE_NOT_FOUND`. */
const RULES: readonly (readonly [RegExp, number])[] = [
  [/(^|_)(NOT_FOUND|UNKNOWN|NO_SUCH)(_|$)/, 404],
  [/(^|_)(NO_CAPACITY|NO_SPACE|NO_OFFER|FULL)(_|$)/, 507],
  [
    /(^|_)(BUSY|CONFLICT|EXISTS|IN_USE|ALREADY|REFUSED|SEALED|DRAINING|MOVING|HELD|TAKEN|TOO_LATE|RUN_OVER|ATTACHED|FENCED|KEPT|LOCKED|PARKED|WAIVED|NOTHING_TO)(_|$)/,
    409,
  ],
  [
    /(^|_)(WRONG_STATE|WRONG_GENERATION|NOT_RUNNING|NOT_STOPPED|NOT_HEALTHY|NOT_COMPLETE|NOT_MOVABLE|WRONG_VOLUME|WRONG_LENGTH)(_|$)/,
    409,
  ],
  [/(^|_)(INVALID|BAD|MALFORMED|OUT_OF_RANGE|TOO_SMALL|TOO_LARGE|TOO_LONG)(_|$)/, 400],
  [/(^|_)(TIMEOUT|DEADLINE)(_|$)/, 504],
  [/(^|_)UNREACHABLE(_|$)/, 502],
  [/(^|_)(UNSUPPORTED|MISSING)(_|$)/, 501],
];

/** 400 to 599. A code that no rule knows is 500. */
export function statusOf(code: string): number {
  const exact = EXACT[code];
  if (exact !== undefined) return exact;
  const withoutRoom = code.slice(code.indexOf('_') + 1);
  for (const [pattern, status] of RULES) if (pattern.test(withoutRoom)) return status;
  return 500;
}
