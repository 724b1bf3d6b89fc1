/*
 * What names something in the folders of this worker, wherever it came from: an id in a path or body of a
 * request, in a record, on a command line. One plain name: no separator, not `.` or `..`, nothing that a
 * shell or a log would take for something else.
 */

/** For schemas; sys/named-path.ts makes paths of it and of nothing else. */
export const OWN_NAME_PATTERN = '^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$';

export const OWN_NAME = new RegExp(OWN_NAME_PATTERN);

/** Pure. */
export function isOwnName(name: unknown): name is string {
  return typeof name === 'string' && OWN_NAME.test(name);
}

/** Of an iSCSI node (RFC 7143 section 4.2.7): the kernel's tools keep a folder for each. */
export const NODE_NAME_PATTERN = '^[A-Za-z0-9][A-Za-z0-9.:_-]{0,222}$';

export const NODE_NAME = new RegExp(NODE_NAME_PATTERN);
