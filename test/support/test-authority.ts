import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';

/** A certificate authority of a test, by the openssl program. Certificates are for 127.0.0.1, localhost and their own name. */
export class TestAuthority {
  readonly dir: string;
  readonly caFile: string;

  constructor(dir: string) {
    mkdirSync(dir, { recursive: true });
    this.dir = dir;
    this.caFile = join(dir, 'ca.pem');
    const subject = ['-subj', `/CN=authority of ${dir.split('/').at(-1)}`];
    openssl(
      'req',
      '-x509',
      ...NEW_KEY,
      '-keyout',
      join(dir, 'ca.key'),
      '-out',
      this.caFile,
      ...subject,
      '-days',
      '2',
    );
  }

  /** `addresses`: of the subject alternative name. */
  issue(name: string, addresses = 'IP:127.0.0.1,DNS:localhost'): TlsFiles {
    const at = (suffix: string) => join(this.dir, `${name}.${suffix}`);
    writeFileSync(at('ext'), `subjectAltName=${addresses},DNS:${name}\n`);
    openssl('req', '-new', ...NEW_KEY, '-keyout', at('key'), '-out', at('csr'), '-subj', `/CN=${name}`);
    const signer = ['-CA', this.caFile, '-CAkey', join(this.dir, 'ca.key'), '-CAcreateserial'];
    openssl(
      'x509',
      '-req',
      '-in',
      at('csr'),
      ...signer,
      '-days',
      '2',
      '-extfile',
      at('ext'),
      '-out',
      at('pem'),
    );
    return { certFile: at('pem'), keyFile: at('key'), caFile: this.caFile };
  }
}

const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

function openssl(...words: string[]): void {
  execFileSync('openssl', words, { stdio: ['ignore', 'ignore', 'pipe'], timeout: 20_000 });
}
