import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** PEM files under the names that nbdkit, qemu and libnbd look for in a folder. */
export type TestCertificates = {
  dir: string;
  ca: Buffer;
  serverCertificate: Buffer;
  serverKey: Buffer;
  clientCertificate: Buffer;
  clientKey: Buffer;
};

/** An authority, a server `localhost` (and 127.0.0.1) and a client of it, made with openssl; valid for two days. */
export function makeCertificates(dir: string): TestCertificates {
  const openssl = (...args: string[]) =>
    execFileSync('openssl', args, { cwd: dir, stdio: 'pipe', timeout: 20_000 });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  openssl(
    ...[
      'req',
      '-x509',
      ...key,
      '-keyout',
      'ca-key.pem',
      '-out',
      'ca-cert.pem',
      '-subj',
      '/CN=test authority',
    ],
    ...['-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign'],
  );
  for (const [name, usage] of [
    ['server', 'serverAuth'],
    ['client', 'clientAuth'],
  ]) {
    const extensions = `subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=${usage}\nkeyUsage=digitalSignature\n`;
    writeFileSync(join(dir, `${name}.ext`), extensions);
    openssl('req', ...key, '-keyout', `${name}-key.pem`, '-out', `${name}.csr`, '-subj', `/CN=${name}`);
    openssl(
      ...[
        'x509',
        '-req',
        '-in',
        `${name}.csr`,
        '-CA',
        'ca-cert.pem',
        '-CAkey',
        'ca-key.pem',
        '-CAcreateserial',
      ],
      ...['-days', '2', '-extfile', `${name}.ext`, '-out', `${name}-cert.pem`],
    );
  }
  const read = (name: string) => readFileSync(join(dir, name));
  return {
    dir,
    ca: read('ca-cert.pem'),
    serverCertificate: read('server-cert.pem'),
    serverKey: read('server-key.pem'),
    clientCertificate: read('client-cert.pem'),
    clientKey: read('client-key.pem'),
  };
}
