// The text of docs/reference/cli.md, from the command table. Pure. Enters: the commands, the exit codes. Leaves: the
// text of the document. Always holds: the document contains each command with the text of --help, so it cannot differ
// from the program.
import { EXIT } from '../wire/errors.ts'
import type { CliCommand } from './command.ts'
import { commandHelp } from './help.ts'
import { EXIT_MEANINGS } from './output.ts'

const GROUPS: readonly { title: string; about: string; names: RegExp }[] = [
  { title: 'Keys and certificates', about: 'The root key signs all certificates.', names: /^(keygen|root|enrol)\b/ },
  { title: 'Processes', about: 'They run in the foreground and log to stderr.', names: /^(gateway|node)$/ },
  { title: 'VMs of this host', about: "They connect to the node's socket.", names: /^(vm|image|disk)\b/ },
  {
    title: 'Migrations',
    about: "They connect to the gateway's admin API.",
    names: /^(plan|migrate|cancel|status|events|migrations|explain)$/,
  },
  { title: 'Repair', about: 'For hosts, sites and VMs that need a decision.', names: /^(doctor|recover|site)\b/ },
  { title: 'MQTT', about: 'They connect to the MQTT broker.', names: /^mqtt\b/ },
  { title: 'Models and measurements', about: 'They need no gateway and no node.', names: /^(sim|demo|bench)\b/ },
]

const HEAD = `# Command line

\`node bin/run.js scripts/cli-reference.ts\` writes this file from the command table; a test compares them.

A command is one or two words and then options: \`godwit vm create FILE --start\`. Options may stand anywhere after them,
as \`--name value\` or \`--name=value\`. Durations are \`300ms\`, \`20s\`, \`5m\`, \`1h\` or \`30d\`; sizes are \`512B\`,
\`64MiB\` or \`100MB\`. A flag overrides the environment, the environment overrides the file, the file overrides the default
([configure](../operate/configure.md)). With \`--json\`, stdout has one JSON value with units in the names; an error is
\`{"error": {"code", "message", "hint"}}\`.
`

/** The whole document. A command without a group is a bug. */
export function cliReference(commands: readonly CliCommand[]): string {
  const homeless = commands.filter(({ name }) => !GROUPS.some(({ names }) => names.test(name)))
  if (homeless.length > 0) throw new Error(`cli/reference.ts: no group for ${homeless.map(({ name }) => name).join(', ')}`)
  const parts = GROUPS.flatMap(({ title, about, names }) => {
    const inside = commands.filter(({ name }) => names.test(name))
    const rows = inside.map(({ name, summary }) => `| [\`godwit ${name}\`](#godwit-${name.replaceAll(' ', '-')}) | ${summary} |`)
    const helps = inside.map(command => `### godwit ${command.name}\n\n\`\`\`text\n${commandHelp(command).trimEnd()}\n\`\`\`\n`)
    return [`## ${title}\n\n${about}\n\n| command | what it does |\n| --- | --- |\n${rows.join('\n')}\n`, ...helps]
  })
  return [HEAD, exitCodes(), ...parts].join('\n')
}

function exitCodes(): string {
  const rows = Object.entries(EXIT).map(([name, code]) => `| ${code} | ${EXIT_MEANINGS[name as keyof typeof EXIT]} |`)
  return [
    '## Exit codes\n',
    'Every error has a stable code as well: [troubleshoot](../operate/troubleshoot.md) has a cause and a remedy for each.\n',
    '| exit code | meaning |\n| --- | --- |',
    ...rows,
    '',
  ].join('\n')
}
