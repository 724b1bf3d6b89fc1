import { constants, createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { createSecureContext, type SecureContext, type Server } from 'node:tls';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';

/**
 * Three PEM files: this host's certificate (with intermediates behind it, if any), its key, and the CA that
 * peers must be signed by.
 */
export type TlsFiles = { certFile: string; keyFile: string; caFile: string };

/**
 * What OpenSSL is given: PEM, TLS 1.3 or nothing, and no session that could be resumed: each connection is a
 * handshake with the certificates of its day.
 */
export type TlsMaterial = {
  cert: Buffer;
  key: Buffer;
  ca: Buffer;
  minVersion: 'TLSv1.3';
  secureOptions: number;
};

/** Whom a client believes and, for a TlsIdentity, who it is. */
export type TlsClient = {
  clientOptions(): { secureContext: SecureContext; rejectUnauthorized: true };
};

/**
 * Who this host is in TLS, for both sides of a connection: both show a certificate, and each must be signed
 * by the CA. The files may be replaced at any time: they are looked at for every new connection, and what
 * does not fit together (a certificate that is there before its key) leaves the last good set in use.
 *
 *   server:  tls.createServer({ ...identity.serverOptions(), … }) and identity.follow(server)
 *   client:  tls.connect({ host, port, ...identity.clientOptions() }), which checks the name or address in the peer's certificate
 */
export class TlsIdentity implements TlsClient {
  readonly files: TlsFiles;
  readonly #logger: Logger;
  #stamp: string;
  #material: TlsMaterial;
  #context: SecureContext;

  /** Throws `SYS_TLS_UNREADABLE` and `SYS_TLS_BAD_FILE`, which name the file. */
  constructor(files: TlsFiles, logger: Logger) {
    this.files = files;
    this.#logger = logger;
    this.#stamp = stampOf(files);
    this.#material = readMaterial(files);
    this.#context = createSecureContext(this.#material);
  }

  serverOptions(): TlsMaterial & { requestCert: true; rejectUnauthorized: true } {
    this.#refresh();
    return { ...this.#material, requestCert: true, rejectUnauthorized: true };
  }

  clientOptions(): { secureContext: SecureContext; rejectUnauthorized: true } {
    this.#refresh();
    return { secureContext: this.#context, rejectUnauthorized: true };
  }

  /**
   * Why a client that connects to `host` refuses this certificate today as far as can be seen from here;
   * null: nothing is wrong with it. Pure but for the clock of the host.
   */
  flaw(host: string): string | null {
    const certificate = new X509Certificate(this.#material.cert);
    const address = host.replace(/^\[|\]$/g, '');
    const named = isIP(address) ? certificate.checkIP(address) : certificate.checkHost(address);
    if (named === undefined) return `it does not name ${address}`;
    const nowMs = Date.now();
    if (nowMs > certificate.validToDate.getTime()) return `it has expired on ${certificate.validTo}`;
    if (nowMs < certificate.validFromDate.getTime()) return `it is not valid before ${certificate.validFrom}`;
    return null;
  }

  /** Gives each new connection of the server the files as they are then. */
  follow(server: Server): void {
    let used = this.#material;
    server.prependListener('connection', () => {
      this.#refresh();
      if (this.#material === used) return;
      used = this.#material;
      server.setSecureContext(used);
    });
  }

  #refresh(): void {
    const { files } = this;
    let stamp = '';
    try {
      stamp = stampOf(files);
      if (stamp === this.#stamp) return;
      const material = readMaterial(files);
      this.#context = createSecureContext(material);
      this.#material = material;
      this.#logger.info({ certFile: files.certFile }, 'TLS: the certificate files changed and are in use');
    } catch (error) {
      if (stamp === this.#stamp) return;
      this.#logger.warn(
        { certFile: files.certFile, error: messageOf(error) },
        'TLS: the certificate files changed and do not fit; the last good ones stay in use',
      );
    }
    this.#stamp = stamp;
  }
}

/**
 * A client without a certificate of its own, such as the command line: it believes servers that are signed by
 * this CA. The file is read once.
 */
export class TlsTrust implements TlsClient {
  readonly #context: SecureContext;

  /** Throws `SYS_TLS_UNREADABLE` and `SYS_TLS_BAD_FILE`, which name the file. */
  constructor(caFile: string) {
    const ca = readPem(caFile);
    parse(caFile, () => new X509Certificate(ca));
    this.#context = createSecureContext({ ca, minVersion: 'TLSv1.3' });
  }

  clientOptions(): { secureContext: SecureContext; rejectUnauthorized: true } {
    return { secureContext: this.#context, rejectUnauthorized: true };
  }
}

/** Changes whenever one of the files is written or replaced. */
function stampOf(files: TlsFiles): string {
  return [files.certFile, files.keyFile, files.caFile]
    .map((file) => {
      try {
        const { ino, size, mtimeNs } = statSync(file, { bigint: true });
        return `${ino}.${size}.${mtimeNs}`;
      } catch (error) {
        throw unreadable(file, error);
      }
    })
    .join(' ');
}

function readMaterial(files: TlsFiles): TlsMaterial {
  const { certFile, keyFile, caFile } = files;
  const [cert, key, ca] = [readPem(certFile), readPem(keyFile), readPem(caFile)];
  const certificate = parse(certFile, () => new X509Certificate(cert));
  parse(caFile, () => new X509Certificate(ca));
  const privateKey: KeyObject = parse(keyFile, () => createPrivateKey(key));
  if (!certificate.checkPrivateKey(privateKey)) throw badFile(keyFile, `is not the key of ${certFile}`);
  return { cert, key, ca, minVersion: 'TLSv1.3', secureOptions: constants.SSL_OP_NO_TICKET };
}

function readPem(file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    throw unreadable(file, error);
  }
}

function parse<Value>(file: string, read: () => Value): Value {
  try {
    return read();
  } catch (error) {
    throw badFile(file, `cannot be parsed: ${messageOf(error)}`, error);
  }
}

function unreadable(file: string, cause: unknown): GodwitError {
  return new GodwitError('SYS_TLS_UNREADABLE', `${file} cannot be read: ${messageOf(cause)}`, {
    values: { file, systemCode: systemErrorCode(cause) ?? null },
    retry: 'never',
    nextAction: 'Give the path of a PEM file that this user may read.',
    cause,
  });
}

function badFile(file: string, what: string, cause?: unknown): GodwitError {
  return new GodwitError('SYS_TLS_BAD_FILE', `${file} ${what}`, {
    values: { file },
    retry: 'never',
    nextAction:
      'It takes PEM files: a certificate, the key that belongs to it, without a passphrase, and the CA.',
    cause,
  });
}
