export type GuestOptions = {
  name: string;
  address: string;
  /** The lab's end of its network card. */
  tap: string;
  /** Of the lab: its log, files of its kind. */
  folder: string;
  /** Files that are its disks. */
  disks: readonly string[];
  memoryMib: number;
};

/** What a kind makes a guest of. */
export type GuestSpec = GuestOptions & {
  /** Of its network card. */
  mac: string;
  /** Path of what its kernel runs first, in the root of this machine, which is its own, read-only. */
  init: string;
  /** `NAME=value` on the command line of its kernel: the environment of init. */
  environment: readonly string[];
};

/**
 * A kind of machine that a kernel of its own runs in: user-mode-linux (uml-kind.ts) or QEMU (qemu-kind.ts).
 */
export interface GuestKind {
  /**
   * How many times as long as in user-mode-linux all may take: every patience of the lab is multiplied by it.
   */
  readonly patience: number;
  /**
   * From its start until its agent answers, on a quiet machine with two processors, two of them at a time.
   */
  readonly bootMs: number;
  /** Name of the network card in the guest. */
  readonly card: string;
  /** Folder with the modules of its kernel, by release, on this machine. */
  readonly modulesDir: string;
  /** Device of a disk in the guest; the first is 0. */
  disk(index: number): string;
  /** Makes what is common to the guests of a lab. */
  prepare(folder: string): Promise<void>;
  /** The program that is the guest, with its console on standard output. */
  command(spec: GuestSpec): { argv: readonly [string, ...string[]]; env: Record<string, string> };
}

/** Of a disk, as in /dev/vda, /dev/vdb … */
export function diskLetter(index: number): string {
  return String.fromCharCode('a'.charCodeAt(0) + index);
}
