/** Upper bounds of a server. Every one has a default; memory and time of a peer's doing are bounded by them. */
export type ServerLimits = {
  /** Connections at once, in the handshake or after it. More are closed at once. */
  connectionsMax: number;
  /** From accept to the transmission phase, TLS included. */
  handshakeTimeoutMs: number;
  /** Data of one option. More is skipped unread and refused. */
  optionBytesMax: number;
  /** Options of one handshake. */
  optionsMax: number;
  /** Largest read, write, cache and write-zeroes; announced as the maximum block size. */
  requestBytesMax: number;
  /** A longer payload ends the connection; one above `requestBytesMax` is skipped and answered with an error. */
  payloadBytesMax: number;
  /** Requests of one connection at once. */
  requestsMax: number;
  /** Buffers of one connection: writes that are received or under way, reads until the kernel took them. One request alone may exceed it. */
  connectionBytesMax: number;
  /** Of these as many are the connection's own: peers that hold the rest for long do not hold up its small requests. */
  connectionBytesReserved: number;
  /** What all connections together have beyond that. At least `requestBytesMax`. */
  serverBytesMax: number;
  /** A peer that is in the middle of a request, or has answers to take, and does not move for so long is dropped. */
  stallTimeoutMs: number;
  /** Extents of one block status, in each context. */
  extentsMax: number;
};

export const SERVER_LIMITS: ServerLimits = {
  connectionsMax: 128,
  handshakeTimeoutMs: 15_000,
  optionBytesMax: 16 * 1024,
  optionsMax: 256,
  requestBytesMax: 32 * 1024 * 1024,
  payloadBytesMax: 64 * 1024 * 1024,
  requestsMax: 128,
  connectionBytesMax: 16 * 1024 * 1024,
  connectionBytesReserved: 1024 * 1024,
  serverBytesMax: 128 * 1024 * 1024,
  stallTimeoutMs: 60_000,
  extentsMax: 4096,
};
