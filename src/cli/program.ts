import { Argument, Command, Option } from 'commander';
import type { Context, GlobalOptions } from './context.ts';
import { EXIT_HELP } from './exit.ts';

/** 128 and the number of SIGINT, as shells have it. */
const INTERRUPTED = 130;

type Act = (context: Context, ...given: never[]) => Promise<void> | void;

/**
 * The commands, their options and their help. What they do is in commands/, and loaded when it is asked for:
 * `godwit --help` and completion wait for nothing.
 */
export function makeProgram(host: NodeJS.Process, version: string): Command {
  const program = new Command('godwit')
    .description(
      'Empties hosts of stateful workloads without losing a write and without anyone waiting for bytes.',
    )
    .version(version)
    .option(
      '--fleet <FILE>',
      'fleet file (GODWIT_FLEET; else ./.godwit/fleet.json, ~/.config/godwit/fleet.json)',
    )
    .option('--url <URL>', 'one worker instead of a fleet (GODWIT_URL)')
    .option(
      '--ca <FILE>',
      "authority of the workers' certificates (GODWIT_CA_FILE; else what the fleet file names)",
    )
    .option('--token <TOKEN>', 'token of the fleet (GODWIT_TOKEN); seen by others in the process list')
    .option('--token-file <FILE>', 'file with the token (GODWIT_TOKEN_FILE; else what the fleet file names)')
    .option('--json', 'print JSON')
    .showHelpAfterError('(see --help)')
    .addHelpText('after', `\n${EXIT_HELP}`);

  /** Runs `act` with a context that is closed afterwards. */
  const withContext = async (command: Command, act: (context: Context) => Promise<void> | void) => {
    const { Context } = await import('./context.ts');
    const context = new Context(command.optsWithGlobals() as GlobalOptions, host);
    const cutOff = () => {
      // A command that has something to do first listens itself.
      if (host.listenerCount('SIGINT') > 1) return;
      if (context.goesOn !== null) context.note(context.goesOn);
      host.exit(INTERRUPTED);
    };
    host.on('SIGINT', cutOff);
    try {
      await act(context);
    } finally {
      host.off('SIGINT', cutOff);
      context.close();
    }
  };
  /** That function of what is loaded, with what the command was given, and its options behind that. */
  const does =
    <Name extends string>(load: () => Promise<{ [Key in Name]: Act }>, name: Name) =>
    (...given: unknown[]) =>
      withContext(given.pop() as Command, async (context) =>
        (await load())[name](context, ...(given as never[])),
      );
  const collect = (value: string, previous: string[]) => [...previous, value];

  // The whole job first.
  program
    .command('drain')
    .description('empty a worker: every machine leaves, and none comes')
    .argument('<WORKER>')
    .option('--dry-run', 'only say what would be done: order, targets, interruption, bytes, finish')
    .option('--to <WORKER>', 'only to this worker')
    .option('--rekey', 'encrypted volumes get a new key and header there')
    .option('--detach', 'ask for it and do not watch')
    .option('--wait <DURATION>', 'how long nothing may move before it counts as blocked', '15s')
    .option('--receipts <DIR>', 'save the receipts of the moves there, when it is done')
    .option('--json-lines', 'one JSON object a line for every change; the last has "final": true')
    .action(does(() => import('./commands/drain.ts'), 'drain'));
  program
    .command('undrain')
    .description('end a drain before the next machine; the worker takes machines again')
    .argument('<WORKER>')
    .action(does(() => import('./commands/drain.ts'), 'undrain'));
  program
    .command('move')
    .description('move one machine to another worker')
    .argument('<MACHINE>')
    .option('--to <WORKER>', 'to this worker; else the best offer wins')
    .option('--rekey', 'its encrypted volume gets a new key and header there')
    .option('--detach', 'start it and do not watch')
    .action(does(() => import('./commands/machine.ts'), 'move'));
  program
    .command('why')
    .description('what a machine, a volume, a run or a worker waits for, and who can clear it')
    .argument('<REF>')
    .action(does(() => import('./commands/why.ts'), 'why'));
  program
    .command('top')
    .description('workers and machines, live')
    .option('--once', 'one look')
    .action(does(() => import('./commands/top.ts'), 'top'));

  const machine = program.command('machine').description('machines: run, list, show, stop, start, …');
  const machineCommands = () => import('./commands/machine.ts');
  machine
    .command('run')
    .description('make a machine and start it; waits until it is healthy')
    .argument('<COMMAND...>', 'program and arguments, after --')
    .requiredOption('--name <NAME>', 'name of the machine')
    .option(
      '--worker <WORKER>',
      'where; else the worker with the most free memory, or the one with the volume',
    )
    .option('--volume <NAME[:PATH]>', 'volume and where the machine sees it (default /data)')
    .option(
      '--nbd',
      'the machine gets the volume at the NBD socket /run/godwit/disk.sock: without PATH instead of a mount, with PATH beside it and read-only',
    )
    .option('--size <SIZE>', 'size of the volume when it is new, e.g. 10GiB')
    .addOption(
      new Option(
        '--filesystem <TYPE>',
        'of a new volume (default ext4; none where it is not mounted)',
      ).choices(['ext4', 'xfs', 'none']),
    )
    .option('--no-encryption', 'a new volume as plain bytes (default: encrypted)')
    .option('--env <NAME=VALUE>', 'environment (repeatable; NAME alone is passed on)', collect, [])
    .option('--user <USER>', 'user name or id')
    .option('--workdir <PATH>', 'working directory')
    .option(
      '--host-folder <PATH>',
      'folder of the host that the machine sees, read-only (repeatable)',
      collect,
      [],
    )
    .option(
      '--device <PATH>',
      'character device of the host that the machine sees, e.g. /dev/kvm (repeatable)',
      collect,
      [],
    )
    .option('--memory <SIZE>', 'memory limit')
    .option('--cpus <NUMBER>', "limit in CPUs' worth of time")
    .addOption(
      new Option('--network <KIND>', "the worker's own, or only loopback")
        .choices(['host', 'none'])
        .default('host'),
    )
    .option('--health-exec <COMMAND>', 'healthy when this shell command in the machine ends with 0')
    .option('--health-tcp <[HOST:]PORT>', 'healthy when this port takes connections')
    .option('--health-http <URL>', 'healthy when this answers with 200 to 399')
    .option('--health-interval <DURATION>', 'between two probes (default 2s)')
    .option('--health-timeout <DURATION>', 'of a probe (default 2s)')
    .option(
      '--health-start-period <DURATION>',
      'failures this soon after the start do not count (default 60s)',
    )
    .option('--stop-signal <SIGNAL>', 'signal that asks it to end (default SIGTERM)')
    .option('--stop-timeout <DURATION>', 'then it is killed (default 10s)')
    .option('--restart <POLICY>', 'no, on-failure[:RETRIES] or always (default always)')
    .option('--group <GROUP>', 'machines of one group go to different workers')
    .option('--detach', 'do not wait until it is healthy')
    .option('--wait <DURATION>', 'how long to wait until it is healthy', '5m')
    .action(does(machineCommands, 'run'));
  machine.command('list').description('machines of the fleet').action(does(machineCommands, 'list'));
  for (const [name, description] of [
    ['show', 'one machine'],
    ['start', 'start a stopped machine'],
    ['stop', 'stop a machine: signal, timeout, kill'],
    ['restart', 'stop and start a machine'],
  ] as const) {
    machine.command(name).description(description).argument('<MACHINE>').action(does(machineCommands, name));
  }
  machine
    .command('destroy')
    .description('destroy stopped machines; their volumes stay')
    .argument('<MACHINE...>')
    .option('--force', 'running ones too')
    .option('--volume', 'the volume too, and all that is on it')
    .action(does(machineCommands, 'destroy'));
  machine
    .command('logs')
    .description('output of a machine')
    .argument('<MACHINE>')
    .option('-n, --lines <NUMBER>', 'lines from the end', '100')
    .option('-f, --follow', 'go on until Ctrl-C')
    .action(does(machineCommands, 'logs'));
  machine
    .command('exec')
    .description("run a command inside a machine; ends with the command's exit code (124: it took too long)")
    .option('-i, --interactive', 'the command reads what is typed here, or what is in the pipe')
    .option('-t, --tty', 'the command gets a terminal, of the size of this one; what is typed goes there')
    .argument('<MACHINE>')
    .argument('<COMMAND...>', 'program and arguments, after --')
    .option('--timeout <DURATION>', 'kill it after this; not with -i or -t', '60s')
    .action(does(machineCommands, 'exec'));

  const volume = program
    .command('volume')
    .description('volumes: create, import, list, show, serve, move, destroy');
  const volumeCommands = () => import('./commands/volume.ts');
  volume
    .command('create')
    .description('make a sparse volume with a filesystem')
    .argument('<NAME>')
    .requiredOption('--size <SIZE>', 'e.g. 10GiB')
    .addOption(new Option('--filesystem <TYPE>').choices(['ext4', 'xfs', 'none']).default('ext4'))
    .option('--encrypted', 'with a key of its own (default; a worker without keys refuses)')
    .addOption(new Option('--no-encryption', 'as plain bytes').conflicts('dmCrypt'))
    .option('--dm-crypt', 'dm-crypt may open it too: takes more space, and all of it when it is trimmed')
    .option('--worker <WORKER>', 'where; else the worker with the most free memory')
    .action(does(volumeCommands, 'create'));
  volume
    .command('import')
    .description('make a volume of a disk of another system; it can be used at once, and its blocks follow')
    .argument('<NAME>')
    .argument(
      '<SOURCE>',
      'nbd://, nbds://, nbd+unix://, iscsi://, iscsis://, or a raw image on the worker; - reads it from standard input',
    )
    .addOption(
      new Option('--filesystem <TYPE>', 'what is on it (default: what it begins with)').choices([
        'ext4',
        'xfs',
        'none',
      ]),
    )
    .option('--no-encryption', 'needed where the worker has keys: what is imported is kept as it comes')
    .option('--worker <WORKER>', 'where; else the worker with the most free memory')
    .action(does(volumeCommands, 'importVolume'));
  volume
    .command('list')
    .description('volumes of the fleet')
    .option('--all', 'the sealed copies of earlier moves too')
    .action(does(volumeCommands, 'list'));
  volume.command('show').description('one volume').argument('<VOLUME>').action(does(volumeCommands, 'show'));
  volume
    .command('serve')
    .description('serve a volume that no running machine has to any NBD or iSCSI client, until Ctrl-C')
    .argument('<VOLUME>')
    .addOption(
      new Option('--nbd <ADDRESS>', 'HOST:PORT or unix:PATH on its worker').conflicts(['iscsi', 'stop']),
    )
    .addOption(new Option('--iscsi <ADDRESS>', 'HOST:PORT on its worker').conflicts('stop'))
    .option('--writable', 'clients may write (else they may only read)')
    .option(
      '--open-to-host',
      'NBD on loopback without TLS: every process of the host may connect, and every machine with its network',
    )
    .option(
      '--tls',
      "iSCSI over TLS, for clients with a certificate of the fleet's authority (NBD at an address always is)",
    )
    .addOption(
      new Option('--chap-user <USER>', 'what iSCSI clients log in as (default: the name of the volume)'),
    )
    .addOption(
      new Option('--chap-secret-file <FILE>', 'with the secret of iSCSI clients (default: one is made up)'),
    )
    .option('--detach', 'do not wait for Ctrl-C; end it with --stop')
    .option('--stop', 'end it')
    .action(does(volumeCommands, 'serve'));
  volume
    .command('move')
    .description('move a volume that no machine has to another worker; asked again, it goes on where it was')
    .argument('<VOLUME>')
    .option('--to <WORKER>', 'to this worker; else the best offer wins')
    .action(does(() => import('./commands/volume-move.ts'), 'moveVolume'));
  volume
    .command('destroy')
    .description('destroy volumes that no machine has, and all that is on them')
    .argument('<VOLUME...>')
    .option('--force', 'the sealed copy that a move left as a way back, too')
    .option('--all-copies', 'with all sealed copies that moves left of it, on all workers')
    .action(does(volumeCommands, 'destroy'));

  volume
    .command('accept-loss')
    .description('go on with what the disk has of a volume that lost data, after its machine was stopped')
    .argument('<VOLUME>')
    .option('--yes', 'do it; without it, what was lost is said')
    .action(does(volumeCommands, 'acceptLoss'));
  volume
    .command('recover')
    .description('make the sealed volume that a move left behind a volume of its own, under a new id')
    .argument('<VOLUME>', 'name or id of the volume that moved')
    .requiredOption('--as <NAME>', 'name of the new volume')
    .option('--worker <WORKER>', 'where it was left, if several workers have one')
    .action(does(volumeCommands, 'recover'));

  program
    .command('receipt')
    .description('the proof of a move: what arrived is what left; signed by both workers')
    .argument('[MOVE]', 'run of the move, or a machine for its latest one')
    .option('--verify <FILE>', 'verify a receipt in a file (- for standard input); needs no worker')
    .option(
      '--key <FINGERPRINT>',
      "SHA-256 of a worker's public key; both must be given (repeatable)",
      collect,
      [],
    )
    .action(does(() => import('./commands/receipt.ts'), 'receipt'));

  const runs = program
    .command('runs')
    .description('what the workers are doing: list, show, cancel, nudge, force');
  const runCommands = () => import('./commands/runs.ts');
  runs
    .command('list')
    .description('unfinished runs of the fleet')
    .option('--all', 'finished ones too')
    .action(does(runCommands, 'list'));
  runs
    .command('show')
    .description('one run with its steps')
    .argument('<RUN>')
    .action(does(runCommands, 'show'));
  for (const [name, description] of [
    ['cancel', 'undo a run, where that is still possible'],
    ['nudge', 'try a step that waits for its next attempt now'],
  ] as const) {
    runs
      .command(name)
      .description(description)
      .argument('<RUN>')
      .action((id: string, _options, command: Command) =>
        withContext(command, async (context) => (await runCommands()).act(context, name, id)),
      );
  }
  runs
    .command('force')
    .description('override a run that nobody can help any more: the last resort')
    .argument('<RUN>')
    .addArgument(
      new Argument(
        '<HOW>',
        'undo it, let it try again from here, forget it as it stands, or (an arrived move whose source is lost for good) end it without a receipt',
      ).choices(['undo', 'forward', 'forget', 'unproven']),
    )
    .option('--yes', 'yes, what it left half done is mine to clear')
    .option(
      '--target-is-destroyed',
      'for undo and forget after the handoff: the target host, and what the machine wrote there, will never come back',
    )
    .action(does(runCommands, 'force'));

  program
    .command('worker')
    .description('run a worker on this host until SIGTERM; its machines go on running without it')
    .option('--config <FILE>', 'JSON with the options below, in camelCase')
    .option('--name <NAME>', 'unique in the fleet, for ever (GODWIT_WORKER_NAME)')
    .option('--data <DIR>', 'journal, records and volumes (GODWIT_WORKER_DATA)')
    .option('--listen <HOST:PORT>', 'API address (GODWIT_WORKER_LISTEN; default 127.0.0.1:4680)')
    .option('--advertise <URL>', 'where other workers reach the API (GODWIT_WORKER_ADVERTISE)')
    .option(
      '--peer <NAME=URL>',
      'another worker, repeatable (GODWIT_WORKER_PEERS, separated by commas)',
      (value: string, previous: string[] | undefined) => [...(previous ?? []), value],
    )
    .option(
      '--iscsi-host <HOST>',
      'address that volumes are served on during a move (default: the host of --listen)',
    )
    .addOption(
      new Option(
        '--plane <PLANE>',
        'what serves volumes here; kernel wants what `godwit doctor` names',
      ).choices(['userspace', 'kernel']),
    )
    .option(
      '--tls-cert <FILE>',
      'certificate of this host (PEM): its API, and moves between workers that have one, go over TLS',
    )
    .option('--tls-key <FILE>', 'its key')
    .option('--tls-ca <FILE>', 'the authority that signed the certificates of all workers')
    .option(
      '--tls-optional',
      'workers without certificates may ask and be asked too, while the fleet gets them',
    )
    .option('--memory <SIZE>', 'memory that machines may be given (default: what the host has)')
    .option('--cpus <NUMBER>', 'CPUs that machines may be given (default: what the host has)')
    .option('--disk <SIZE>', 'disk that volumes may take (default: what the data folder has)')
    .option(
      '--when-full <WHAT>',
      'pause or error: what becomes of writes when the disk is full but for what is kept back (default: they wait)',
    )
    .option(
      '--hydration-rate <SIZE>',
      'bytes per second that a volume which arrives here may take in the background (default: no limit)',
    )
    .option('--retain <DURATION>', 'how long a source volume is kept after its move (default 7d)')
    .option('--key-file <PATH>', 'keys of encrypted volumes; {volume} in the path is the id of the volume')
    .option(
      '--key-exec <COMMAND>',
      'a program that prints the key of volume $GODWIT_VOLUME_ID; split at blanks',
    )
    .option(
      '--header-size <SIZE>',
      'of the LUKS2 headers that are made here, key slots included, up to 16MiB (default 536KiB)',
    )
    .option('--log-level <LEVEL>', 'debug, info, warn or error (default info)')
    // Without a client of a fleet, which a worker does not wait for either.
    .action(async (_options, command: Command) => {
      const note = (text: string) => void host.stderr.write(`${text}\n`);
      const { worker } = await import('./commands/worker.ts');
      await worker({ env: host.env, cwd: host.cwd(), note }, command.optsWithGlobals());
    });

  program
    .command('doctor')
    .description('what this host can do for godwit, and what would make each no a yes')
    .action(does(() => import('./commands/doctor.ts'), 'doctor'));

  const devCommand = program
    .command('dev')
    .description('a fleet on this machine: worker processes of their own, until Ctrl-C')
    .option('--workers <NUMBER>', 'how many', '3')
    .option('--data <DIR>', 'folder of the fleet', '.godwit')
    .option('--respawn', 'start a worker again that ends')
    .option('--stop', 'the same as: godwit dev down')
    .action(does(() => import('./commands/dev.ts'), 'dev'));
  devCommand
    .command('down')
    .description('destroy the machines and volumes of the local fleet, and end its workers')
    .action((_options, command: Command) =>
      withContext(command, async (context) =>
        (await import('./commands/dev.ts')).down(context, command.optsWithGlobals()),
      ),
    );

  program
    .command('completion')
    .description('completion script for a shell: source <(godwit completion bash)')
    .addArgument(new Argument('<SHELL>').choices(['bash', 'zsh', 'fish']))
    .action(async (shell: 'bash' | 'zsh' | 'fish') => {
      const { completionScript } = await import('./commands/completion.ts');
      host.stdout.write(`${completionScript(shell)}\n`);
    });
  program
    .command('complete', { hidden: true })
    .argument('[WORDS...]')
    .action((words: string[], _options, command: Command) =>
      withContext(command, async (context) => {
        const { complete, fleetNames } = await import('./commands/completion.ts');
        const candidates = await complete(program, words, (placeholder) => fleetNames(context, placeholder));
        if (candidates.length > 0) context.print(candidates.join('\n'));
      }),
    );
  return program;
}
