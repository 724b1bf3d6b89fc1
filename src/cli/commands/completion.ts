import type { Command, Option } from 'commander';
import type { Context } from '../context.ts';
import { FleetClient, owned } from '../fleet-client.ts';

export type Shell = 'bash' | 'zsh' | 'fish';

/**
 * Each script asks `godwit complete -- WORDS…` for the words that may stand where the last one is, one a
 * line.
 */
const SCRIPTS: Readonly<Record<Shell, string>> = {
  bash: `# godwit completion for bash: source <(godwit completion bash)
_godwit() {
  local IFS=$'\\n'
  COMPREPLY=($(godwit complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _godwit godwit`,
  zsh: `#compdef godwit
# godwit completion for zsh: source <(godwit completion zsh)
_godwit() {
  local -a candidates
  candidates=(\${(f)"$(godwit complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)"})
  if (( \${#candidates} )); then compadd -- $candidates; else _files; fi
}
compdef _godwit godwit`,
  fish: `# godwit completion for fish: godwit completion fish | source
function __godwit_complete
    set -l words (commandline -opc) (commandline -ct)
    godwit complete -- $words[2..-1] 2>/dev/null
end
complete -c godwit -a '(__godwit_complete)'`,
};

export function completionScript(shell: Shell): string {
  return SCRIPTS[shell];
}

/** What stands for a thing of the fleet in the usage of commands and options. */
const PLACEHOLDERS = /\b(MACHINE|VOLUME|WORKER|RUN|REF)\b/;

/**
 * Words that may stand where the last of `words` (maybe empty) is. `names` gives the things of the fleet for
 * a placeholder.
 */
export async function complete(
  program: Command,
  words: readonly string[],
  names: (placeholder: string) => Promise<string[]>,
): Promise<string[]> {
  const current = words.at(-1) ?? '';
  let command = program;
  let position = 0;
  let expecting: Option | undefined;
  for (const word of words.slice(0, -1)) {
    if (word === '--') return [];
    if (expecting) {
      expecting = undefined;
    } else if (word.startsWith('-')) {
      const option = optionsOf(command).find((each) => each.long === word || each.short === word);
      if (option?.required) expecting = option;
    } else {
      const next = command.commands.find((each) => each.name() === word);
      if (next) {
        command = next;
        position = 0;
      } else position++;
    }
  }
  const candidates: string[] = [];
  if (expecting) {
    if (expecting.argChoices) candidates.push(...expecting.argChoices);
    else candidates.push(...(await namesFor(expecting.flags, names)));
  } else if (current.startsWith('-')) {
    candidates.push(...optionsOf(command).flatMap((option) => option.long ?? []), '--help');
  } else {
    candidates.push(
      ...command.commands.filter((each) => each.name() !== 'complete').map((each) => each.name()),
    );
    const { registeredArguments } = command;
    const last = registeredArguments.at(-1);
    const argument = registeredArguments[position] ?? (last?.variadic ? last : undefined);
    if (argument?.argChoices) candidates.push(...argument.argChoices);
    else if (argument) candidates.push(...(await namesFor(argument.name(), names)));
  }
  return [...new Set(candidates)].filter((candidate) => candidate.startsWith(current)).sort();
}

function optionsOf(command: Command): Option[] {
  const own = command.options.filter((option) => !option.hidden);
  return command.parent ? [...own, ...optionsOf(command.parent)] : own;
}

function namesFor(text: string, names: (placeholder: string) => Promise<string[]>): Promise<string[]> {
  const match = PLACEHOLDERS.exec(text);
  return match ? names(match[1]!) : Promise.resolve([]);
}

/** Names out of the fleet; nothing when there is none: a shell is no place for an error message. */
export async function fleetNames(context: Context, placeholder: string): Promise<string[]> {
  try {
    const description = context.fleetDescription();
    if (placeholder === 'WORKER') return description.workers.map(({ name }) => name);
    const fleet = new FleetClient(description);
    try {
      const machines = async () => owned('machine', (await fleet.machines()).items).map(({ name }) => name);
      const volumes = async () => owned('volume', (await fleet.volumes()).items).map(({ name }) => name);
      const runs = async () =>
        (await fleet.gather(({ client }) => client.listRuns())).items.map(({ id }) => id);
      switch (placeholder) {
        case 'MACHINE':
          return await machines();
        case 'VOLUME':
          return await volumes();
        case 'RUN':
          return await runs();
        default: {
          const all = await Promise.all([machines(), volumes(), runs()]);
          return [...all.flat(), ...description.workers.map(({ name }) => name)];
        }
      }
    } finally {
      fleet.close();
    }
  } catch {
    return [];
  }
}
