// Runs one command line. Enters: arguments and an Io. Leaves: an exit code; every error has been shown.
import { EXIT, GodwitError } from '../wire/errors.ts'
import type { CliCommand } from './command.ts'
import { tidyEnvironment } from './environment.ts'
import { commandHelp, groupHelp, overview } from './help.ts'
import type { Io } from './io.ts'
import { parseOptions } from './options.ts'
import { showError } from './output.ts'
import { didYouMean } from './suggest.ts'
import { commands } from './table.ts'
import { version } from './version.ts'

export async function run(words: readonly string[], io: Io): Promise<number> {
  try {
    return await dispatch(words, { ...io, env: tidyEnvironment(io.env) })
  } catch (error) {
    return showError(io, error, words.includes('--json'))
  }
}

async function dispatch(words: readonly string[], io: Io): Promise<number> {
  const [first, second] = words
  if (first === undefined) {
    io.err(overview(commands, version))
    return EXIT.usage
  }
  if (first === '--help' || first === '-h' || (first === 'help' && second === undefined)) return print(io, overview(commands, version))
  if (first === '--version' || first === '-V' || first === 'version') return print(io, `${version}\n`)
  if (first === 'help') return await dispatch([...words.slice(1), '--help'], io)
  const found = findCommand(words)
  if ('group' in found) {
    if (second !== undefined && second !== '--help' && second !== '-h') throw unknown(`${first} ${second}`, found.group)
    if (second === undefined) {
      io.err(groupHelp(first, commands))
      return EXIT.usage
    }
    return print(io, groupHelp(first, commands))
  }
  const { command, rest } = found
  if (command.isPassThrough) return await command.run({ options: {}, args: [...rest], io })
  const { options, args, wantsHelp } = parseOptions(command, rest)
  if (wantsHelp) return print(io, commandHelp(command))
  return await command.run({ options: options as never, args, io })
}

function findCommand(words: readonly string[]): { command: CliCommand; rest: readonly string[] } | { group: readonly CliCommand[] } {
  const [first] = words
  for (const count of [3, 2, 1]) {
    const found = commands.find(({ name }) => name === words.slice(0, count).join(' '))
    if (found) return { command: found, rest: words.slice(found.name.split(' ').length) }
  }
  const group = commands.filter(({ name }) => name.startsWith(`${first} `))
  if (group.length > 0) return { group }
  throw unknown(first ?? '', commands)
}

function unknown(name: string, among: readonly CliCommand[]): GodwitError {
  const known = new Set(among.flatMap(command => (name.includes(' ') ? [command.name] : [command.name.split(' ')[0]!])))
  return new GodwitError('USAGE', `unknown command '${name}'${didYouMean(name, known)}`, { hint: 'see godwit --help' })
}

const print = (io: Io, text: string): number => {
  io.out(text)
  return EXIT.ok
}
