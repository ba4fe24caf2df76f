// Parses command-line arguments into options and positionals. Enters: the arguments after the command's name. Leaves:
// typed values, or USAGE that names the wrong argument, what was expected, and the nearest name if it looks like a
// typo.
import { DURATION_FORM, parseDuration, parseSize, SIZE_FORM } from '../ops/units.ts'
import { GodwitError } from '../wire/errors.ts'
import type { CliCommand, OptionSpec } from './command.ts'
import { didYouMean } from './suggest.ts'

type Parsed = { options: Record<string, unknown>; args: string[]; wantsHelp: boolean }

/** Throws USAGE. If --help appears before `--`, nothing else is checked. */
export function parseOptions(command: CliCommand, words: readonly string[]): Parsed {
  const dashes = words.indexOf('--')
  const before = dashes < 0 ? words : words.slice(0, dashes)
  if (before.includes('--help') || before.includes('-h')) return { options: {}, args: [], wantsHelp: true }
  const options: Record<string, unknown> = {}
  for (const [name, spec] of Object.entries(command.options)) if (spec.kind === 'flag') options[name] = false
  const args: string[] = []
  for (let at = 0; at < words.length; at++) {
    const word = words[at]!
    if (word === '--') {
      args.push(...words.slice(at + 1))
      break
    }
    if (!word.startsWith('-') || word === '-') {
      args.push(word)
      continue
    }
    const { name, spec, inline } = find(command, word)
    if (spec.kind === 'flag') {
      if (inline !== undefined) throw usage(command, `--${name} takes no value`)
      options[name] = true
      continue
    }
    const text = inline ?? words[++at]
    if (text === undefined || (inline === undefined && text.startsWith('--')))
      throw usage(command, `--${name} needs a value: ${formOf(spec)}`)
    options[name] = convert(command, name, spec, text)
  }
  for (const [name, spec] of Object.entries(command.options)) {
    if (spec.required && options[name] === undefined) throw usage(command, `--${name} is missing: ${spec.help}`)
  }
  checkArgs(command, args)
  return { options, args, wantsHelp: false }
}

const usage = (command: Pick<CliCommand, 'name'>, message: string): GodwitError =>
  new GodwitError('USAGE', message, { hint: `see godwit ${command.name} --help` })

function find(command: CliCommand, word: string): { name: string; spec: OptionSpec; inline: string | undefined } {
  const [flag, ...rest] = word.split('=')
  const inline = rest.length > 0 ? rest.join('=') : undefined
  const entry = Object.entries(command.options).find(([name, spec]) => flag === `--${name}` || (spec.short && flag === `-${spec.short}`))
  if (entry) return { name: entry[0], spec: entry[1], inline }
  const known = [...Object.keys(command.options).map(name => `--${name}`), '--help']
  throw usage(command, `unknown option ${flag}${didYouMean(flag!, known)}`)
}

function convert(command: CliCommand, name: string, spec: OptionSpec, text: string): unknown {
  const value = read(spec, text)
  if (value !== undefined) return value
  const near = spec.kind === 'choice' ? didYouMean(text, spec.choices) : ''
  throw usage(command, `--${name} '${text}': expected ${formOf(spec)}${near}`)
}

function read(spec: OptionSpec, text: string): unknown {
  switch (spec.kind) {
    case 'duration':
      return parseDuration(text)
    case 'size':
      return parseSize(text)
    case 'integer': {
      const value = /^-?\d{1,15}$/.test(text) ? Number(text) : Number.NaN
      return value >= spec.min && value <= spec.max ? value : undefined
    }
    case 'choice':
      return spec.choices.includes(text) ? text : undefined
    case 'text':
      // Pasted, or from $(...): white space around it is never intended.
      return text.trim() === '' ? undefined : text.trim()
    default:
      return text === '' ? undefined : text
  }
}

function formOf(spec: OptionSpec): string {
  if (spec.kind === 'duration') return DURATION_FORM
  if (spec.kind === 'size') return SIZE_FORM
  if (spec.kind === 'integer') return `a whole number from ${spec.min} to ${spec.max}`
  if (spec.kind === 'choice') return spec.choices.join(' or ')
  return spec.kind === 'flag' ? '' : spec.value
}

function checkArgs(command: CliCommand, args: string[]): void {
  const needed = command.positionals.filter(({ optional }) => !optional)
  if (args.length < needed.length) throw usage(command, `${needed[args.length]!.name} is missing: ${needed[args.length]!.help}`)
  const most = command.positionals.some(({ many }) => many) ? Number.POSITIVE_INFINITY : command.positionals.length
  if (args.length > most) throw usage(command, `unexpected argument '${args[most]}'`)
}
