/**
 * What can go on for hours. A soak goes round by round, each with a seed of its own that repeats it. A round
 * is a test file that takes GODWIT_SEED, or a module that exports `run` (SoakModule).
 */
export type Soak = {
  name: string;
  about: string;
  round: { files: readonly string[]; env?: Record<string, string> } | { module: string; minutes: number };
};

export type SoakContext = {
  /** The round ends by itself after about that long. */
  minutes: number;
  seed: number;
  /** Kept when the round fails. */
  stateFolder: string;
  log: (line: string) => void;
};

/** Rejects with what did not hold. */
export type SoakModule = { run(context: SoakContext): Promise<void> };

const LONG = { GODWIT_LONG: '1', GODWIT_FULL: '1' };

export const SOAKS: readonly Soak[] = [
  {
    name: 'clone',
    about: 'the clone against its model, with crashes, power cuts and faults of the disk at every point',
    round: { files: ['src/clone/clone-simulation.test.ts'], env: LONG },
  },
  {
    name: 'moves',
    about: 'both runs of a move against a model, with a crash at every append',
    round: { files: ['src/migration/moves.test.ts', 'src/migration/sagas.test.ts'], env: LONG },
  },
  {
    name: 'chaos',
    about: 'whole workers: kills, cuts, stalls, full and failing disks',
    round: { files: ['test/chaos/*.test.ts'], env: LONG },
  },
  {
    name: 'hostile-bytes',
    about: 'a million inputs for each parser of foreign bytes',
    round: {
      files: [
        'src/iscsi/hostile.test.ts',
        'src/iscsi/initiator-fuzz.test.ts',
        'src/nbd/*-fuzz.test.ts',
        'src/crypt/header-store.test.ts',
        'src/freemap/sealed-map.test.ts',
        'test/interop/freemap-hostile.test.ts',
      ],
      env: LONG,
    },
  },
  {
    name: 'fleet',
    about:
      'thirty machines on three workers: processes killed and stopped, full disks, and all that operators do; at the end every `why` against what was done',
    round: { module: './fleet-life.ts', minutes: 60 },
  },
  {
    name: 'sim',
    about:
      'fleets of whole workers on a simulated network, clock and hosts: ten thousand drains (docs/simulation.md)',
    round: { module: '../sim/nights.ts', minutes: 600 },
  },
  {
    name: 'hostile-peers',
    about:
      'a worker with ten machines under fio verify, among 200 hostile peers of its API and of volumes that it serves over NBD and iSCSI',
    round: { module: './hostile-peers.ts', minutes: 60 },
  },
];
