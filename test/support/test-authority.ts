import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import { patient } from './patience.ts';

/**
 * A certificate authority of a test, by the openssl program. Its folder has the files under the names that
 * nbdkit, qemu and libnbd look for: ca-cert.pem, and NAME-cert.pem and NAME-key.pem of every certificate.
 */
export class TestAuthority {
  readonly dir: string;
  readonly caFile: string;
  readonly #caKeyFile: string;

  constructor(dir: string) {
    mkdirSync(dir, { recursive: true });
    this.dir = dir;
    this.caFile = join(dir, 'ca-cert.pem');
    this.#caKeyFile = join(dir, 'ca-key.pem');
    openssl(
      ...['req', '-x509', ...NEW_KEY, '-days', '2', '-keyout', this.#caKeyFile, '-out', this.caFile],
      ...['-subj', `/CN=authority of ${dir.split('/').at(-1)}`, '-addext', 'keyUsage=critical,keyCertSign'],
    );
  }

  /**
   * For servers and clients, valid for two days. `addresses`: of the subject alternative name, beside the
   * name itself. `expired`: since yesterday.
   */
  issue(name: string, options: { addresses?: string; expired?: boolean } = {}): TlsFiles {
    const { addresses = 'IP:127.0.0.1,DNS:localhost', expired = false } = options;
    const certFile = join(this.dir, `${name}-cert.pem`);
    const keyFile = join(this.dir, `${name}-key.pem`);
    const request = join(this.dir, `${name}.csr`);
    const extensions = join(this.dir, `${name}.ext`);
    writeFileSync(extensions, `subjectAltName=${addresses},DNS:${name}\nkeyUsage=digitalSignature\n`);
    openssl('req', '-new', ...NEW_KEY, '-keyout', keyFile, '-out', request, '-subj', `/CN=${name}`);
    openssl(
      ...['x509', '-req', '-in', request, '-CA', this.caFile, '-CAkey', this.#caKeyFile, '-CAcreateserial'],
      ...['-days', expired ? '-1' : '2', '-extfile', extensions, '-out', certFile],
    );
    return { certFile, keyFile, caFile: this.caFile };
  }
}

/** What is in the files. */
export function readPems(files: TlsFiles): { ca: Buffer; certificate: Buffer; key: Buffer } {
  const { caFile, certFile, keyFile } = files;
  return { ca: readFileSync(caFile), certificate: readFileSync(certFile), key: readFileSync(keyFile) };
}

const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

function openssl(...words: string[]): void {
  execFileSync('openssl', words, { stdio: ['ignore', 'ignore', 'pipe'], timeout: patient(20_000) });
}
