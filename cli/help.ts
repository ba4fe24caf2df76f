// Help texts from the command table. Pure.
import type { CliCommand, OptionSpec } from './command.ts'

const WIDTH = 100

/** `godwit --help`. */
export function overview(commands: readonly CliCommand[], version: string): string {
  const width = Math.max(...commands.map(({ name }) => name.length)) + 2
  const lines = commands.map(({ name, summary }) => `  ${name.padEnd(width)}${summary}`)
  return [
    `godwit ${version}: live migration of virtual machines between edge sites, encrypted end to end`,
    '',
    'Usage: godwit COMMAND [OPTIONS]',
    '',
    ...lines,
    '',
    "'godwit COMMAND --help' describes a command. docs/start/tour.md is a tour, docs/reference/cli.md has the exit codes.",
    '',
  ].join('\n')
}

/** `godwit COMMAND --help`. */
export function commandHelp(command: CliCommand): string {
  const parts = [`Usage: ${usageLine(command)}`, '', ...wrap(command.summary), '']
  if (command.details)
    for (const paragraph of command.details.trim().split('\n\n')) parts.push(...wrap(paragraph.replace(/\s*\n\s*/g, ' ')), '')
  if (command.positionals.length > 0) parts.push('Arguments:', ...rows(command.positionals.map(({ name, help }) => [name, help])), '')
  const options = Object.entries(command.options).map(([name, spec]): [string, string] => [optionForm(name, spec), spec.help])
  parts.push('Options:', ...rows([...options, ['--help', 'show this help']]), '')
  if (command.examples.length > 0) parts.push('Examples:', ...command.examples.map(example => `  ${example}`), '')
  return parts.join('\n')
}

/** `godwit GROUP --help`, and `godwit GROUP` without a second word. */
export function groupHelp(group: string, commands: readonly CliCommand[]): string {
  const inside = commands.filter(({ name }) => name.startsWith(`${group} `))
  return [`Usage: godwit ${group} COMMAND`, '', ...rows(inside.map(({ name, summary }) => [name, summary])), ''].join('\n')
}

function usageLine(command: CliCommand): string {
  const required = Object.entries(command.options).filter(([, spec]) => spec.required)
  const isAllRequired = required.length === Object.keys(command.options).length
  return [
    'godwit',
    command.name,
    ...command.positionals.map(({ name, optional, many }) => (optional ? `[${name}]` : name) + (many ? '...' : '')),
    ...required.map(([name, spec]) => optionForm(name, spec)),
    ...(isAllRequired ? [] : ['[OPTIONS]']),
  ].join(' ')
}

function optionForm(name: string, spec: OptionSpec): string {
  const flag = spec.short ? `-${spec.short}, --${name}` : `--${name}`
  if (spec.kind === 'flag') return flag
  if (spec.kind === 'choice') return `${flag} ${spec.choices.join('|')}`
  return `${flag} ${spec.value}`
}

function rows(pairs: [string, string][]): string[] {
  const width = Math.min(34, Math.max(...pairs.map(([left]) => left.length)) + 2)
  return pairs.flatMap(([left, right]) => {
    const lines = wrap(right, WIDTH - width - 2)
    const head =
      left.length < width ? [`  ${left.padEnd(width)}${lines[0] ?? ''}`] : [`  ${left}`, `  ${' '.repeat(width)}${lines[0] ?? ''}`]
    return [...head, ...lines.slice(1).map(line => `  ${' '.repeat(width)}${line}`)]
  })
}

function wrap(text: string, width = WIDTH): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`
    else lines.push(word)
  }
  return lines
}
