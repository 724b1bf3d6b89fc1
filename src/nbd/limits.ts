/** Upper bounds of a server. Every one has a default; memory and time of a peer's doing are bounded by them. */
export type ServerLimits = {
  /** Connections at once, in the handshake or after it. More are closed at once. */
  connectionsMax: number;
  /** Of one TCP address (IPv6: one /64). Clients of a unix socket are one and may have all. */
  connectionsPerAddressMax: number;
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
  /** What one connection makes the server hold (`PeerLimits`): input, requests, output that it does not take. One request alone may exceed it. */
  connectionBytesMax: number;
  /** Of these as many are the connection's own: peers that hold the rest for long do not hold up its small requests. */
  connectionBytesReserved: number;
  /** What the connections of one address have beyond that. */
  addressBytesMax: number;
  /** What all connections together have beyond that. At least `requestBytesMax`. */
  serverBytesMax: number;
  /** A peer that is in the middle of a request, or has answers to take, and hardly moves for so long is dropped. */
  stallTimeoutMs: number;
  /** The same while others wait for what it holds. */
  pressureTimeoutMs: number;
  /** Extents of one block status, in each context. */
  extentsMax: number;
};

export const SERVER_LIMITS: ServerLimits = {
  connectionsMax: 128,
  connectionsPerAddressMax: 96,
  handshakeTimeoutMs: 15_000,
  optionBytesMax: 16 * 1024,
  optionsMax: 256,
  requestBytesMax: 32 * 1024 * 1024,
  payloadBytesMax: 64 * 1024 * 1024,
  requestsMax: 128,
  // More than the largest request.
  connectionBytesMax: 40 * 1024 * 1024,
  // A request of 1 MiB with what belongs to it.
  connectionBytesReserved: 1280 * 1024,
  addressBytesMax: 96 * 1024 * 1024,
  serverBytesMax: 128 * 1024 * 1024,
  stallTimeoutMs: 60_000,
  pressureTimeoutMs: 5_000,
  extentsMax: 4096,
};
