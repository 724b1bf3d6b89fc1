/*
 * Every time for which the control path waits, in one place: docs/patience.md is made from this file (`npm
 * run pages`), and scripts/tidy.ts finds times that stand elsewhere. Values in milliseconds.
 *
 *   measured   follows how long answers took (base/answer-time.ts); the value is its floor
 *   silence    how long nothing may advance (base/progress.ts); what advances is waited for, however long it takes
 *   named      somebody said it: a person, or the configuration of a machine
 *   help       for something that may be left out: a hint, a number of a report
 *   limit      of the length of something whose progress nobody can see; far from what it takes, and tried again where it matters
 *
 * Before a machine is stopped nothing ends for its length, so that a slow host can be emptied; afterwards
 * nothing ends for being slow at all.
 */

export type PatienceKind = 'measured' | 'silence' | 'named' | 'help' | 'limit';

export type Patience = {
  ms: number;
  kind: PatienceKind;
  /** What is waited for. */
  waits: string;
  /** What happens at its end. */
  end: string;
  /** What happens when everything takes ten times as long. */
  slow: string;
};

const WAITED_FOR = 'waited for: what advances is not ended';

const TABLE = {
  // ---- steps of a move ----
  observedStep: {
    ms: 120_000,
    kind: 'silence',
    waits:
      'an advance in a step before the stop whose work others do (choose, export, prepare, sync; attach at the target): an answer, bytes, processor time of a process that starts',
    end: 'the run is undone with JOURNAL_STEP_QUIET and the last reason; the machine runs on',
    slow: WAITED_FOR,
  },
  livesOnly: {
    ms: 2 * 3_600_000,
    kind: 'limit',
    waits:
      'something to advance in such a step, while whoever works on it answers that it lives, and that is all that is seen of it (a worker whose disk hangs answers so)',
    end: 'the answers count no more: the step ends for its silence; a drain tries another target',
    slow: 'a sync of 100 GiB of dirty pages at 50 MB/s takes 34 minutes',
  },
  localStep: {
    ms: 600_000,
    kind: 'silence',
    waits:
      'the same in a step of this worker alone (reserve, volume at the target): the disk under its data folder',
    end: 'as above, once the attempt has returned',
    slow: 'waited for: such a step takes seconds',
  },
  stoppedStep: {
    ms: 60_000,
    kind: 'silence',
    waits: 'an advance in a step while the machine is stopped and before the handoff (stop, seal, open)',
    end: '`why` says that nothing advances, and the attempt is told to end and begins again; the run is never undone for it',
    slow: WAITED_FOR,
  },
  forwardStep: {
    ms: 24 * 3_600_000,
    kind: 'silence',
    waits: 'an advance in a step past the point of no return',
    end: '`why` says so, and the step is tried again; for ever',
    slow: WAITED_FOR,
  },
  longStep: {
    ms: 365 * 24 * 3_600_000,
    kind: 'silence',
    waits: 'an advance in serving, hydrating and proving',
    end: 'the same',
    slow: WAITED_FOR,
  },
  handoffWait: {
    ms: 3_600_000,
    kind: 'silence',
    waits:
      'a word of the source, at a target that stands by: the handoff, or an answer that its run is still on',
    end: 'the target forgets the move; the source starts the machine again, if it was stopped',
    slow: 'waited for as long as the source answers',
  },
  targetLost: {
    ms: 15_000,
    kind: 'measured',
    waits:
      'a sign of life of the target, when the machine is stopped and nothing was sent that the target could act upon',
    end: 'MIGRATION_TARGET_LOST: the machine starts at its source again',
    slow: 'at least three questions in a row must stay without an answer, each waited for as peerAnswer says',
  },
  healthPatience: {
    ms: 600_000,
    kind: 'limit',
    waits: 'the first healthy answer of a machine at its target',
    end: 'nothing is given up: the move goes on and says that the machine is not healthy',
    slow: 'a machine that takes 20 minutes to recover is reported as unhealthy for the second ten',
  },
  healthRound: {
    ms: 10_000,
    kind: 'limit',
    waits: 'the same, alone on its host',
    end: 'hydration begins beside the boot',
    slow: 'the boot shares the host earlier',
  },
  handoffHold: {
    ms: 10_000,
    kind: 'help',
    waits: 'the volume to open, with the answer to the handoff',
    end: 'the answer says where the target is, and the source asks again',
    slow: 'one more question',
  },
  mountRefused: {
    ms: 60_000,
    kind: 'limit',
    waits:
      'before a kernel that did not mount an empty filesystem of some features is asked again; one that did is not',
    end: 'it is tried again',
    slow: 'the same',
  },
  destroyMoving: {
    ms: 60_000,
    kind: 'named',
    waits:
      'the move of a machine to end, which `destroy --force` has called off, or whose machine it has killed',
    end: 'WORKER_MACHINE_MOVING, which says what is left and how it goes; the machine is down',
    slow: 'the person asks again',
  },
  superblock: {
    ms: 5_000,
    kind: 'help',
    waits: 'the first bytes of a volume, from its server, for the target to prove that it can mount it',
    end: 'the machine moves without that proof',
    slow: 'the boot finds out',
  },
  planOffers: {
    ms: 10_000,
    kind: 'limit',
    waits:
      'the offers of all other workers, for a plan (`drain --dry-run`); asked side by side, once for all its machines',
    end: 'who has not answered is named as silent, and the plan is made without him',
    slow: 'a plan names a worker that slow as silent; a drain waits for it',
  },
  drainHeld: {
    ms: 5_000,
    kind: 'limit',
    waits:
      'the move of one machine of a drain to come further: another step, bytes, a work that advances; while the machine stops or boots, answers alone do not count',
    end: 'the next machine goes; the one that is held up waits with its reason, and goes on by itself',
    slow: 'machines follow each other more closely, at most eight at a time',
  },
  offerGrace: {
    ms: 5_000,
    kind: 'help',
    waits: 'offers of the other workers, once one has accepted',
    end: 'the best of those that came is taken',
    slow: 'a slow worker is passed over for one that answers; when nobody has accepted, every worker that lives is waited for',
  },
  warm: {
    ms: 2_000,
    kind: 'help',
    waits: 'the target to take the hint of what the machine reads at its boot',
    end: 'the move goes on without it',
    slow: 'the boot fetches what it reads when it reads it',
  },
  freeMap: {
    ms: 5_000,
    kind: 'help',
    waits: 'the map of unused blocks, while the machine is stopped',
    end: 'the move goes on without it: unused blocks travel too',
    slow: 'more bytes cross the wire',
  },

  // ---- between workers ----
  peerAnswer: {
    ms: 2_000,
    kind: 'measured',
    waits:
      'the answer of another worker to "do you live?", asked while a call takes long; smoothed time plus four deviations, doubled with each question that nobody answers',
    end: 'after three in a row the call ends with API_UNREACHABLE',
    slow: 'follows: a call to a worker that answers has no end of its own',
  },
  peerAnswerMax: {
    ms: 60_000,
    kind: 'measured',
    waits: 'the longest that the same grows to',
    end: 'the same',
    slow: 'the same',
  },
  // ---- shims ----
  shimAnswer: {
    ms: 5_000,
    kind: 'measured',
    waits: 'the answer of a shim to "how are you?", asked while an operation takes long; as peerAnswer',
    end: 'after three in a row the operation ends with RPC_TIMEOUT; a step asks again',
    slow: 'follows: an operation of a shim that answers has no end of its own',
  },
  shimAnswerMax: {
    ms: 60_000,
    kind: 'measured',
    waits: 'the longest that the same grows to',
    end: 'the same',
    slow: 'the same',
  },
  shimStatus: {
    ms: 10_000,
    kind: 'measured',
    waits: 'the state of a shim, for a list or a question of a person',
    end: 'the machine is listed without it, or the step asks again',
    slow: 'follows, as shimAnswer',
  },
  shimLook: {
    ms: 4_000,
    kind: 'help',
    waits: 'the state of one shim, for a list',
    end: 'the machine is listed with what was last known of it, as `silent`; the others are not kept waiting',
    slow: 'a machine of a host that slow is listed as silent, and has an answer in the next list',
  },
  processStart: {
    ms: 30_000,
    kind: 'silence',
    waits:
      'a process that was started (shim, volume server) to use its processor or to load something, until it says that it is ready',
    end: 'MACHINE_SHIM_NOT_STARTED, with what it did last',
    slow: WAITED_FOR,
  },

  // ---- a machine's filesystem and processes ----
  fileSystemCall: {
    ms: 120_000,
    kind: 'silence',
    waits: 'a mount, an unmount or a sync whose device reads and writes nothing',
    end: 'MACHINE_MOUNT_FAILED, MACHINE_UNMOUNT_FAILED or MACHINE_SYNC_FAILED with `timedOut`; the call itself is not given up, and asked again it is waited for again',
    slow: WAITED_FOR,
  },
  deviceRelease: {
    ms: 10_000,
    kind: 'silence',
    waits:
      'another mount namespace to let go of its copy of an unmounted filesystem, while its device does nothing',
    end: 'MACHINE_DEVICE_HELD: an obstacle with a name, so the run goes back and the machine runs here again',
    slow: 'waited for while the device writes; a namespace that is just being made is gone within a second',
  },
  kill: {
    ms: 30_000,
    kind: 'limit',
    waits: 'processes to end after SIGKILL',
    end: 'MACHINE_KILL_STUCK with the pids; a step asks again',
    slow: 'asked again: they end when the device that they wait for answers',
  },
  stopSlack: {
    ms: 90_000,
    kind: 'named',
    waits: 'a shim, beyond the time that its machine has to stop',
    end: 'the shim is taken for hung: machine and shim are killed and cleaned up after, the move goes on',
    slow: 'a signal and a wait take milliseconds',
  },
  launch: {
    ms: 600_000,
    kind: 'limit',
    waits: 'the jail of a machine to be built (mounts, namespaces)',
    end: 'it is killed and another one is made',
    slow: 'it takes tens of milliseconds',
  },
  cleanUpStep: {
    ms: 60_000,
    kind: 'silence',
    waits:
      'one step of the clean-up after a shim that died: an unmount whose device does nothing, a loop device that stays',
    end: 'what it waits for is ended in errors (the FUSE connection is aborted), and it is tried once more',
    slow: WAITED_FOR,
  },
  hostProgram: {
    ms: 15_000,
    kind: 'silence',
    waits:
      'a program of the host (losetup, dmsetup, iscsiadm, …) that uses no processor; some have a longer one of their own',
    end: 'it is killed: HOST_TOOL_STUCK',
    slow: WAITED_FOR,
  },

  // ---- volume servers and their sources ----
  serverReady: {
    ms: 90_000,
    kind: 'silence',
    waits: 'the same of a volume server, which logs in to its source before it is ready',
    end: 'ATTACH_SERVER_NOT_READY, with what it did last; another one is started',
    slow: WAITED_FOR,
  },
  serverAnswer: {
    ms: 5_000,
    kind: 'measured',
    waits:
      'the answer of a volume server to "how are you?", asked by its shim while an operation takes long; as peerAnswer',
    end: 'after three in a row the operation ends with RPC_TIMEOUT; a step asks again',
    slow: 'follows: an operation of a server that answers has no end of its own',
  },
  serverAnswerMax: {
    ms: 60_000,
    kind: 'measured',
    waits: 'the longest that the same grows to',
    end: 'the same',
    slow: 'the same',
  },
  serverStop: {
    ms: 10_000,
    kind: 'limit',
    waits: 'a volume server that was told to end, when nothing uses its volume any more',
    end: 'it is killed: what was acknowledged is durable or in its validity file, and the next server goes on from there',
    slow: 'it takes milliseconds; killed, it loses nothing either',
  },
  firstLogin: {
    ms: 60_000,
    kind: 'limit',
    waits: 'the first login of a clone at its source, other tries included, before the stop',
    end: 'the volume server says why, and the step tries again',
    slow: 'a login takes tens of milliseconds; the step is quiet for observedStep at the most',
  },

  // ---- the rest ----
  keyProgram: {
    ms: 60_000,
    kind: 'limit',
    waits: 'the key program of a worker (`--key-program`), which may ask over a network',
    end: 'it is killed with all that it started: CRYPT_KEY_UNAVAILABLE; a step asks again',
    slow: 'a program that takes seconds takes a minute and is killed; a step asks again, and says each time that no key came in that time',
  },
  countGuest: {
    ms: 10_000,
    kind: 'silence',
    waits:
      'the kernel to suspend a device, for the count of what the guest has written, at the proof of a move (kernel plane)',
    end: 'the device goes on, and the proof is tried again',
    slow: WAITED_FOR,
  },
  pulse: {
    ms: 2_000,
    kind: 'help',
    waits:
      "the kernel to suspend a device for a moment, so that the guest's requests go before copies (kernel plane)",
    end: 'the device goes on; the next turn of the copies tries again',
    slow: 'fewer copies while the guest is busy',
  },
  unlock: {
    ms: 60_000,
    kind: 'silence',
    waits: 'cryptsetup to derive a key',
    end: 'HOST_TOOL_STUCK',
    slow: WAITED_FOR,
  },
  configTree: {
    ms: 30_000,
    kind: 'silence',
    waits: 'the kernel to take a setting of its target',
    end: 'HOST_TOOL_STUCK',
    slow: WAITED_FOR,
  },
  makeFilesystem: {
    ms: 120_000,
    kind: 'silence',
    waits: 'mkfs',
    end: 'HOST_TOOL_STUCK: the volume is not made',
    slow: WAITED_FOR,
  },
  loop: {
    ms: 30_000,
    kind: 'silence',
    waits: 'losetup, and the kernel to let a loop device go',
    end: 'HOST_TOOL_STUCK or HOST_LOOP_BUSY; a step asks again',
    slow: 'losetup is waited for; a loop device goes at once when its last user has gone',
  },
  trim: { ms: 300_000, kind: 'silence', waits: 'fstrim', end: 'HOST_TOOL_STUCK', slow: WAITED_FOR },
  suspend: {
    ms: 60_000,
    kind: 'silence',
    waits: 'dmsetup, where it waits for what is in flight (suspend)',
    end: 'HOST_TOOL_STUCK; asked again',
    slow: 'what is in flight to a source may take longer: then the process is killed, which harms nothing, and it is asked again',
  },
  kernelLogin: {
    ms: 60_000,
    kind: 'silence',
    waits: 'iscsiadm to log in (kernel plane)',
    end: 'HOST_TOOL_STUCK; a step tries again',
    slow: WAITED_FOR,
  },
  kernelDisk: {
    ms: 60_000,
    kind: 'limit',
    waits: 'the disk of a session to appear (kernel plane)',
    end: 'HOST_ISCSI_NO_DISK; a step tries again',
    slow: 'it appears within milliseconds of the login',
  },
  journalClose: {
    ms: 10_000,
    kind: 'limit',
    waits: 'steps that were told to end because the worker stops',
    end: 'the journal is closed under them; they are repeated by the next worker',
    slow: 'the same',
  },
  catchUp: {
    ms: 10_000,
    kind: 'silence',
    waits: 'what a process that was stopped itself has not read yet',
    end: 'the step has been quiet for as long as it may',
    slow: 'the process was stopped for longer: it has as much again',
  },
  programOutput: {
    ms: 50,
    kind: 'limit',
    waits: 'the output of a program that has ended, when a child of its own keeps it open',
    end: 'what came is what there is',
    slow: 'output that was written before the end is there',
  },
  execSilence: {
    ms: 60_000,
    kind: 'silence',
    waits: 'a sign of life of the other end of `machine exec -i` or `-t`, which gives one every 15 s',
    end: 'the worker hangs the command up; the command line ends, and says that the worker does not answer',
    slow: 'a command line that is stopped for longer is hung up',
  },
  programKill: {
    ms: 1_000,
    kind: 'limit',
    waits: 'a program after SIGKILL',
    end: 'it is left behind: it hangs in the kernel',
    slow: 'the same',
  },
  giveUpSource: {
    ms: 10_000,
    kind: 'named',
    waits: 'an unmount that writes what is dirty, of a machine that an operator gave up (`destroy --force`)',
    end: 'what it waits for at the source ends in errors',
    slow: 'what is dirty waits for no source; the machine is given up',
  },
  probe: {
    ms: 600_000,
    kind: 'named',
    waits: 'a health check, whose own `timeoutMs` ends it before',
    end: 'it is killed',
    slow: 'a check that takes longer than its own time has failed: give it more',
  },
  greeting: {
    ms: 60_000,
    kind: 'limit',
    waits: 'the first bytes of TLS on a new connection',
    end: 'it is closed',
    slow: 'a handshake takes milliseconds of processor time',
  },
  idleConnection: {
    ms: 75_000,
    kind: 'limit',
    waits: 'another request on an idle connection',
    end: 'it is closed',
    slow: 'a new one is made',
  },
  personAnswer: {
    ms: 30_000,
    kind: 'limit',
    waits: 'the answer of a worker to a command of a person',
    end: 'the command ends with API_UNREACHABLE; what it asked for goes on',
    slow: 'the command is repeated: all of them may be',
  },
  personWhy: {
    ms: 10_000,
    kind: 'limit',
    waits: 'the answer of a worker to `godwit why`, which asks shims that may hang',
    end: 'the answers of the others are printed, this worker is named, and the exit code is 4',
    slow: 'shims that hang are waited for side by side, each as long as shimLook says; the rest takes milliseconds',
  },
  execAnswer: {
    ms: 10_000,
    kind: 'limit',
    waits: 'the same, for the answer to `godwit machine exec`, beyond the time that its command has',
    end: 'the same',
    slow: 'the same',
  },
  personOperation: {
    ms: 120_000,
    kind: 'limit',
    waits: 'the same, for a command that starts or stops something',
    end: 'the same',
    slow: 'the same',
  },
  personVolume: {
    ms: 300_000,
    kind: 'limit',
    waits: 'the same, for a volume that is made',
    end: 'the same',
    slow: 'the same',
  },
  personProof: {
    ms: 120_000,
    kind: 'limit',
    waits: 'the same, for a question of a proof; workers ask each other without it',
    end: 'the same',
    slow: 'the same',
  },
  reservation: {
    ms: 60_000,
    kind: 'limit',
    waits: 'the answer to a move that asks for room, with that room held for it',
    end: 'the room is free for others; the answer is made with what there is then',
    slow: 'room is held for longer than its answer takes; beyond, two moves may be promised the same room, and the later one finds out when it asks again',
  },
  openReserve: {
    ms: 5_000,
    kind: 'help',
    waits: 'a volume server to open what is kept back of the disk, for a machine that leaves',
    end: 'the machine is stopped all the same',
    slow: 'its last writes wait for room until it is opened',
  },
  firstRecovery: {
    ms: 10_000,
    kind: 'help',
    waits: 'all machines of a worker that starts to be found or started again, before it answers',
    end: 'it answers without; those that are missing are said to be starting',
    slow: 'the same; moves and drains begin meanwhile',
  },
  diskLook: {
    ms: 3_000,
    kind: 'help',
    waits: 'the data disk to take a byte, for `why`',
    end: '`why` says that it does not answer, and since when',
    slow: 'one that is only slow may be named; it says for how long',
  },
  serverWhy: {
    ms: 2_000,
    kind: 'help',
    waits: 'the volume server of a machine or of a served volume to say that it lives, for `why`',
    end: '`why` says that it does not answer',
    slow: 'the same, and that it may be killed, which does no harm',
  },
  servedStatus: {
    ms: 5_000,
    kind: 'help',
    waits: 'what a volume that is served says of itself, for a list',
    end: 'it is listed without',
    slow: 'the list has less',
  },
  restartHealthy: {
    ms: 60_000,
    kind: 'limit',
    waits: 'the first healthy answer after a restart that a person asked for',
    end: 'the answer says that it is not healthy yet; nothing ends',
    slow: 'the person looks again',
  },
  importConnect: {
    ms: 10_000,
    kind: 'limit',
    waits: 'a disk of another system to answer when it is to be imported',
    end: 'the import is refused with what it said',
    slow: 'the person asks again',
  },
  workerClose: {
    ms: 5_000,
    kind: 'limit',
    waits: 'steps that were told to end because the worker stops',
    end: 'as journalClose',
    slow: 'the same',
  },
  dataLock: {
    ms: 10_000,
    kind: 'limit',
    waits: 'the lock of a data file, which who only looks holds for a moment',
    end: 'VOLUME_LOCKED: another server has it; asked again',
    slow: 'it is held for microseconds',
  },
  importProbe: {
    ms: 3_000,
    kind: 'help',
    waits: 'how much of a foreign disk is holes',
    end: 'all of it may be data',
    slow: 'more bytes cross the wire',
  },
  fuseUnmount: {
    ms: 30_000,
    kind: 'limit',
    waits: 'a FUSE folder whose loop device is gone to be unmounted',
    end: 'its connection is aborted: nobody uses it any more',
    slow: 'nothing is written by it',
  },
  overrideQuestion: {
    ms: 5_000,
    kind: 'limit',
    waits: 'the answer of the other worker, when an operator overrides a run of a move',
    end: 'the override is refused, or asks for the statement that names the loss',
    slow: 'the person asks again',
  },
  refusedBody: {
    ms: 1_000,
    kind: 'limit',
    waits: 'the rest of the body of a request that was refused',
    end: 'the connection is closed',
    slow: 'the answer was sent already',
  },
  forgetAnswer: {
    ms: 10_000,
    kind: 'help',
    waits:
      'what a run that is forgotten leaves behind to be given back, with the answer to whoever forced it',
    end: 'the answer comes; giving back goes on',
    slow: 'the same',
  },
} as const satisfies Record<string, Patience>;

export const PATIENCE: { readonly [Name in keyof typeof TABLE]: Patience } = TABLE;

export type Pause = { ms: number; what: string };

/** Between one look, try or question and the next. Nothing ends with them. */
const PAUSES = {
  figures: {
    ms: 10_000,
    what: 'between looks at the machines for who asks for metrics; without anybody who asks there are none',
  },
  peerQuestion: {
    ms: 1_000,
    what: 'before another worker is asked whether it lives, and between such questions',
  },
  tcpKeepAlive: {
    ms: 10_000,
    what: 'before the kernel asks whether the host of a call that takes long still knows its connection',
  },
  shimQuestion: { ms: 5_000, what: 'the same of a shim' },
  mountLetGo: {
    ms: 1_000,
    what: 'for the kernel to let go of a mount whose users have ended, in each try to unmount it',
  },
  shimEnds: {
    ms: 2_000,
    what: 'for a shim that holds its folder, and has no files there, to end or to show itself',
  },
  processLook: { ms: 5, what: 'between looks whether a process that starts is ready' },
  serverLook: { ms: 500, what: 'between looks at what a volume server that starts does' },
  shimStateAgain: {
    ms: 1_000,
    what: 'before a shim whose folder is full, or cannot be written, tries again to write down what it holds',
  },
  deviceLook: {
    ms: 1_000,
    what: 'between looks whether a device reads or writes, while a call to its filesystem takes long',
  },
  sourceWatch: {
    ms: 5_000,
    what: 'between questions of a target that is served whether its source still is not the owner, and for the answer; one that does not come changes nothing',
  },
  sourceProbe: {
    ms: 2_000,
    what: 'between questions of a target that stands by whether its source still means the move',
  },
  appendRetry: { ms: 1_000, what: 'before a journal that could not be written is written again' },
  late: { ms: 1_000, what: 'by which a timer is late when its process did not run' },
  drainRetry: { ms: 2_000, what: 'before a machine that could not go is looked at again; doubles' },
  drainRetryMax: { ms: 60_000, what: 'the longest that the same grows to' },
  healthAgain: { ms: 250, what: 'before a machine that is not healthy, and says so at once, is asked again' },
  silentPeer: {
    ms: 250,
    what: 'for the offer of a worker that did not answer the last time; its answer counts whenever it comes',
  },
  silentPeerLater: {
    ms: 5_000,
    what: 'the same where it was not asked for 10 s: it may be back, and slow',
  },
  drainTick: { ms: 1_000, what: 'between looks of a drain' },
  terminalInput: { ms: 20, what: 'before input is offered again to a terminal whose program does not read' },
  prune: { ms: 50, what: 'between the pieces in which a long history that is of age is pruned' },
  stuckLook: {
    ms: 2_000,
    what: 'after a machine was killed, and then between looks what its processes wait for that do not end',
  },
  stopTold: { ms: 1_000, what: 'before a stop that takes its time says so' },
  heartbeat: { ms: 15_000, what: 'between signs of life in a stream of events' },
  askedTold: {
    ms: 1_000,
    what: 'before `why` and a watched move tell of a question that nobody has answered',
  },
  importLook: { ms: 2_000, what: 'between looks at imports' },
  failedTarget: {
    ms: 600_000,
    what: 'in which a target that refused or failed a machine goes behind all others for it',
  },
  fullLook: { ms: 2_000, what: 'between looks whether a sync before the stop waits for room on the disk' },
  ballast: { ms: 1_000, what: 'between looks whether the data disk leaves room for the journal' },
  dirtyBound: {
    ms: 1_000,
    what: 'between looks whether the data disk has room for what machines have in their page caches',
  },
  roomPortion: { ms: 1_000, what: 'after which a volume that writes looks again how much room its disk has' },
  roomLook: { ms: 250, what: 'between looks of a volume whose writes wait for room on the disk' },
  sweep: { ms: 60_000, what: 'between looks for what is too old to be kept' },
  serverRestartMax: { ms: 2_000, what: 'the longest before another volume server is started' },
  connectionLook: { ms: 1_000, what: 'between looks at connections to the API that prove nothing' },
  connectionReport: { ms: 10_000, what: 'between reports of such' },
  frozenLook: {
    ms: 1_000,
    what: 'before a touch that takes long is looked at: slow, or in front of a frozen filesystem',
  },
  proofAgain: { ms: 1_000, what: 'before a target that is still adding up its sums is asked again' },
  recoveryLook: { ms: 2_000, what: 'between looks whether what should be here is' },
  recoveryRetry: {
    ms: 1_000,
    what: 'before a machine that could not be brought back is tried again; doubles',
  },
  recoveryRetryMax: { ms: 60_000, what: 'the longest that the same grows to' },
} as const satisfies Record<string, Pause>;

export const PAUSE: { readonly [Name in keyof typeof PAUSES]: Pause } = PAUSES;
