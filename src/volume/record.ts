import { type Static, Type } from 'typebox';
import { Nullable, OneOf } from '../base/schema.ts';

/**
 * `volume.json` in the volume's folder: the truth about one volume on one worker. Written by rename and fsync
 * (volume/store.ts), read by the worker and, before a writable open, by the volume server.
 *
 * The fence: a volume may be opened for writing only when `state` is `ready` or `clone` and `generation` is
 * the opener's. Sealing sets `state` to `sealed`: that generation is read-only for ever. An undone move
 * unseals by counting on (sealed at g, ready again at g+2; g+1 was the target's and is burnt).
 */
export const VolumeRecord = Type.Object({
  formatVersion: Type.Literal(1),
  id: Type.String(),
  name: Type.String(),
  lengthBytes: Type.Integer({ minimum: 4096 }),
  filesystem: OneOf('ext4', 'xfs', 'none'),
  generation: Type.Integer({ minimum: 1 }),
  /**
   * incoming: files of a move that has not been handed over yet; never opened for writing.
   * clone: the owner; some blocks are still only at the source. ready: the owner; whole.
   * sealed: handed over or being handed over; read-only for ever at this generation.
   * retained: sealed, the move is done, kept until `destroyAfterMs` as a way back.
   */
  state: OneOf('incoming', 'clone', 'ready', 'sealed', 'retained'),
  createdAtMs: Type.Integer(),
  /** Machine that the volume belongs to, if any: a volume has at most one. */
  machineId: Nullable(Type.String()),
  destroyAfterMs: Nullable(Type.Integer()),
  /**
   * The data file is ciphertext, and its LUKS2 header, with this uuid, is a file beside it. Left out: not
   * encrypted.
   */
  encryption: Type.Optional(
    Type.Object({
      uuid: Type.String(),
      /** The generation that the key was made for; left out: 1, the volume's first key. */
      keyGeneration: Type.Optional(Type.Integer({ minimum: 1 })),
      /**
       * The volume that the key was made for; left out: this one. Another one where this was recovered from
       * what a move left.
       */
      keyVolumeId: Type.Optional(Type.String()),
      /**
       * No call leaves zeros in the ciphertext, so that dm-crypt reads what godwit reads. Left out: sparse,
       * for godwit alone.
       */
      holes: Type.Optional(Type.Literal('none')),
      /**
       * Of an incoming volume or clone that moves to another key: the source's header, a file too, and its
       * key.
       */
      source: Type.Optional(
        Type.Object({
          uuid: Type.String(),
          keyGeneration: Type.Integer({ minimum: 1 }),
          keyVolumeId: Type.Optional(Type.String()),
        }),
      ),
    }),
  ),
});
export type VolumeRecord = Static<typeof VolumeRecord>;
