import { type ErrorValues, GodwitError } from '../base/errors.ts';

/** Where a server listens. */
export type NbdAddress = { host: string; port: number } | { path: string };

/**
 * off: never. allow: where the server offers it, which whoever sits in between can prevent. require: or not
 * at all.
 */
export type NbdTlsMode = 'off' | 'allow' | 'require';

/** What a URI of the NBD project (doc/uri.md) says. */
export type NbdUri = {
  address: NbdAddress;
  exportName: string;
  tls: {
    mode: NbdTlsMode;
    /** Name that the server's certificate must be for; null: the host of the address. */
    hostname: string | null;
    verifyPeer: boolean;
    /**
     * Folder with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` where the server asks for them.
     */
    certificatesDir: string | null;
  };
};

/** Assigned by IANA. */
const NBD_PORT = 10809;
const EXPORT_NAME_BYTES_MAX = 4096;
/** The kernel's limit, sockaddr_un.sun_path without its final NUL. */
const SOCKET_PATH_BYTES_MAX = 107;
const SCHEMES: Readonly<Record<string, { unix: boolean; tls: NbdTlsMode }>> = {
  nbd: { unix: false, tls: 'allow' },
  nbds: { unix: false, tls: 'require' },
  'nbd+unix': { unix: true, tls: 'allow' },
  'nbds+unix': { unix: true, tls: 'require' },
};
/** RFC 3986 appendix B, for URIs that have a scheme. */
const URI_PATTERN = /^([A-Za-z][A-Za-z0-9+.-]*):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?$/s;
const AUTHORITY_PATTERN = /^(?:([^@]*)@)?(\[[0-9A-Fa-f:.%]+\]|[^:@[\]]*)(?::([0-9]*))?$/;

/** True for text that means an NBD server, well-formed or not. */
export function isNbdUri(text: string): boolean {
  return /^nbds?(?:\+unix)?:/i.test(text);
}

/**
 * Takes `nbd://HOST[:PORT]/EXPORT`, `nbds://…` (TLS or nothing), `nbd+unix:///EXPORT?socket=PATH` and
 * `nbds+unix:///…`, with the query parameters `socket`, `tls-type` (x509 only), `tls-hostname`,
 * `tls-verify-peer`, and libnbd's `tls-certificates`. Parameters that begin with `x-` are somebody's
 * experiments and are passed over; all others are refused, as the document asks. Pure. Throws `NBD_BAD_URI`.
 */
export function parseNbdUri(text: string): NbdUri {
  const match = URI_PATTERN.exec(text);
  if (match === null) throw badUri('it is not a URI');
  const [, schemeText, authority = '', path = '', query = '', fragment] = match;
  const scheme = SCHEMES[schemeText!.toLowerCase()];
  if (scheme === undefined || !Object.hasOwn(SCHEMES, schemeText!.toLowerCase())) {
    throw badUri('its scheme is none of nbd, nbds, nbd+unix, nbds+unix', { scheme: schemeText! });
  }
  if (fragment !== undefined) throw badUri('it has a fragment (#…), which NBD gives no meaning');
  const parameters = parseQuery(query);
  const socketPath = parameters.get('socket');
  const exportName = decode(path.startsWith('/') ? path.slice(1) : path, 'export name');
  if (exportName.includes('\0')) throw badUri('its export name contains NUL');
  if (Buffer.byteLength(exportName) > EXPORT_NAME_BYTES_MAX) throw badUri('its export name is too long');
  let address: NbdAddress;
  if (scheme.unix) {
    if (authority !== '') throw badUri('a Unix socket has no host: write SCHEME:///EXPORT?socket=PATH');
    if (socketPath === undefined || socketPath === '') throw badUri('it has no socket parameter');
    if (Buffer.byteLength(socketPath) > SOCKET_PATH_BYTES_MAX) {
      throw badUri('its socket path is longer than the kernel takes', { bytesMax: SOCKET_PATH_BYTES_MAX });
    }
    address = { path: socketPath };
  } else {
    if (socketPath !== undefined) throw badUri('a socket parameter goes with nbd+unix and nbds+unix only');
    address = parseAuthority(authority);
  }
  return {
    address,
    exportName,
    tls: {
      mode: scheme.tls,
      hostname: parameters.get('tls-hostname') ?? null,
      verifyPeer: parameters.get('tls-verify-peer') !== '0',
      certificatesDir: parameters.get('tls-certificates') ?? null,
    },
  };
}

function parseAuthority(authority: string): NbdAddress {
  const match = AUTHORITY_PATTERN.exec(authority);
  if (match === null) throw badUri('host and port cannot be told apart', { authority });
  const [, user, hostText = '', portText] = match;
  if (user !== undefined) throw badUri('it names a user, which only TLS with pre-shared keys knows');
  const host = hostText.startsWith('[') ? hostText.slice(1, -1) : decode(hostText, 'host');
  const port = portText === undefined || portText === '' ? NBD_PORT : Number(portText);
  if (port < 1 || port > 65535) throw badUri('its port is not one', { port: portText! });
  // No authority, or an empty one: this host, as libnbd and qemu take it.
  return { host: host === '' ? 'localhost' : host, port };
}

function parseQuery(query: string): Map<string, string> {
  const parameters = new Map<string, string>();
  if (query === '') return parameters;
  for (const pair of query.split('&')) {
    const equals = pair.indexOf('=');
    const name = decode(equals < 0 ? pair : pair.slice(0, equals), 'parameter');
    const value = equals < 0 ? '' : decode(pair.slice(equals + 1), 'parameter');
    if (name.startsWith('x-')) continue;
    if (parameters.has(name)) throw badUri('a parameter is there twice', { parameter: name });
    const allowed = PARAMETERS[name];
    if (!Object.hasOwn(PARAMETERS, name) || allowed === undefined) {
      throw badUri('a parameter is not known', { parameter: name });
    }
    if (!allowed(value)) throw badUri('a parameter has a value that is not supported', { parameter: name });
    parameters.set(name, value);
  }
  return parameters;
}

const PARAMETERS: Readonly<Record<string, (value: string) => boolean>> = {
  socket: () => true,
  'tls-type': (value) => value === 'x509',
  'tls-hostname': (value) => value !== '',
  'tls-verify-peer': (value) => value === '0' || value === '1',
  'tls-certificates': (value) => value !== '',
};

function decode(text: string, what: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw badUri(`its ${what} is not percent-encoded UTF-8`);
  }
}

function badUri(reason: string, values: ErrorValues = {}): GodwitError {
  return new GodwitError('NBD_BAD_URI', `this is not the URI of an NBD export: ${reason}`, {
    values,
    nextAction:
      'Write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH (nbds for TLS), with special characters percent-encoded.',
  });
}
