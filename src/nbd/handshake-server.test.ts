import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryDevice } from '../block/memory-device.ts';
import { NbdExport } from './export.ts';
import { type HandshakeHost, type HandshakeStep, ServerHandshake } from './handshake-server.ts';
import { SERVER_LIMITS } from './limits.ts';
import {
  decodeOptionReplyHeader,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  OPTION,
  OPTION_REPLY,
} from './protocol.ts';

class Talk {
  readonly host: { tls: HandshakeHost['tls']; closing: boolean };
  readonly handshake: ServerHandshake;
  #replies: Buffer[] = [];

  constructor(tls: HandshakeHost['tls'] = 'none') {
    this.host = { tls, closing: false };
    const exports = [new NbdExport({ name: 'disk', device: new MemoryDevice({ lengthBytes: 4096 }) })];
    this.handshake = new ServerHandshake({
      host: { exports: () => exports, isClosing: () => this.host.closing, tls },
      limits: { ...SERVER_LIMITS, optionsMax: 20 },
      reply: (bytes) => this.#replies.push(bytes),
    });
    this.handshake.push(encodeClientFlags(3), 0);
  }

  option(option: number, data?: Uint8Array): { type: number; step: HandshakeStep } {
    this.#replies = [];
    const { step } = this.handshake.push(encodeOption(option, data), 0);
    const last = this.#replies.at(-1);
    return { type: last === undefined ? 0 : decodeOptionReplyHeader(last).type, step };
  }
}

const GO = encodeInfoRequest('disk', []);

test('with required TLS nothing is told before it, and nothing agreed on before it holds', () => {
  const talk = new Talk('required');
  for (const option of [
    OPTION.list,
    OPTION.info,
    OPTION.go,
    OPTION.structuredReply,
    OPTION.extendedHeaders,
    99,
  ]) {
    assert.equal(
      talk.option(option, option === OPTION.list ? undefined : GO).type,
      OPTION_REPLY.errorTlsRequired,
    );
  }
  assert.deepEqual(talk.option(OPTION.startTls), { type: OPTION_REPLY.ack, step: { next: 'tls' } });
  talk.handshake.secured();
  assert.equal(talk.option(OPTION.startTls).type, OPTION_REPLY.errorInvalid);
  assert.equal(talk.option(OPTION.list).type, OPTION_REPLY.ack);
  const go = talk.option(OPTION.go, GO);
  assert.ok(go.step.next === 'transmission' && go.step.agreement.mode === 'simple');
  const abrupt = new Talk('required');
  assert.equal(abrupt.option(OPTION.exportName, Buffer.from('disk')).step.next, 'end');
});

test('structured replies and contexts of before TLS are void after it', () => {
  const talk = new Talk('optional');
  const contexts = encodeMetaContextRequest('disk', ['base:allocation']);
  assert.equal(talk.option(OPTION.structuredReply).type, OPTION_REPLY.ack);
  assert.equal(talk.option(OPTION.setMetaContext, contexts).type, OPTION_REPLY.ack);
  assert.equal(talk.option(OPTION.startTls).step.next, 'tls');
  talk.handshake.secured();
  const { step } = talk.option(OPTION.go, GO);
  assert.ok(step.next === 'transmission');
  assert.equal(step.agreement.mode, 'simple');
  assert.deepEqual(step.agreement.contextIds, []);
});

test('contexts hold for the last selection only, also when it fails', () => {
  const good = encodeMetaContextRequest('disk', ['base:allocation']);
  for (const [last, expected] of [
    [good, [0]],
    [encodeMetaContextRequest('disk', []), []],
    [encodeMetaContextRequest('other', ['base:allocation']), []],
    [Buffer.alloc(3), []],
  ] as const) {
    const talk = new Talk();
    talk.option(OPTION.structuredReply);
    talk.option(OPTION.setMetaContext, good);
    talk.option(OPTION.setMetaContext, last);
    const { step } = talk.option(OPTION.go, GO);
    assert.ok(step.next === 'transmission');
    assert.deepEqual(step.agreement.contextIds, expected);
  }
});

test('a server that is being shut down refuses options and answers an abort', () => {
  const talk = new Talk();
  talk.host.closing = true;
  assert.equal(talk.option(OPTION.go, GO).type, OPTION_REPLY.errorShutdown);
  assert.deepEqual(talk.option(OPTION.abort).type, OPTION_REPLY.ack);
});

test('a handshake without end is ended', () => {
  const talk = new Talk();
  assert.throws(
    () => {
      for (;;) talk.option(OPTION.list);
    },
    { code: 'NBD_PROTOCOL' },
  );
});
