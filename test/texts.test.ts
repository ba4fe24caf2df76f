// What texts name is there: every file, command, option, configuration field, environment variable and error code that
// the documents, the help, hints, messages and samples name. And what a person may set is in the samples.
import { existsSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { ClientConfig } from '../cli/config.ts'
import { commands } from '../cli/table.ts'
import { NodeConfig } from '../edge-node/config.ts'
import { GatewayConfig } from '../gateway/config.ts'
import { ERRORS } from '../wire/errors.ts'
import { fieldsOf } from './support/fields.ts'
import { root } from './support/source-tree.ts'
import { assert, suite } from './support/suite.ts'
import { code, type Found, files, find, none, prose, quoted, spans } from './support/texts.ts'

const test = suite('texts')

const names = new Set(files.map(({ path }) => basename(path)))

// --- files ---

const FOLDERS =
  'bench|bin|cli|crypto|docs|edge-node|examples|fuzz|gateway|guest|identity|mqtt|ops|packaging|planning|scripts|sim-network|test|transport|wire'
const SUFFIXES = ['', '.ts', '.test.ts', '.serial.test.ts', '.md']
/** Files of others (QEMU's documents, a Node package), topics, and files of an operator's configuration folder. */
const NOT_OURS = /^(docs\/interop\/|bin\/node$|gateway\/[a-z]+$|mqtt\/[a-z]+(\.(password|pem|key))?$)/

test('every file that a text names exists', () => {
  const pattern = new RegExp(`(?<![\\w/.$@{}~-])((?:${FOLDERS})/[\\w./*-]*[\\w*])(?![\\w{}<$])`, 'g')
  const paths = find(pattern, [...prose, ...code])
  assert.ok(paths.length > 200, 'the reader of paths finds next to none')
  const fits = (pattern: string) => new RegExp(`^${pattern.replace(/[.]/g, '\\.').replaceAll('*', '.*')}`)
  const isThere = (path: string) =>
    path.includes('*')
      ? files.some(file => fits(path).test(file.path))
      : SUFFIXES.some(suffix => existsSync(join(root, `${path}${suffix}`)))
  none(
    paths.filter(({ groups: [path = ''] }) => !isThere(path) && !NOT_OURS.test(path)),
    'no such file',
  )
})

test('every source file and document that a comment or a text names by its name alone exists', () => {
  const pattern = /(?<![\w/.*$}-])((?!UIDS-GIDS)[\w-]+\.(?:ts|md)|godwit[\w-]*\.service)\b/g
  none(
    find(pattern, [...prose, ...code]).filter(({ groups: [name = ''] }) => !names.has(name)),
    'no file of this name',
  )
})

// --- commands and options ---

const groups = new Set(commands.flatMap(({ name }) => (name.includes(' ') ? [name.split(' ')[0]!] : [])))
const commandOf = (words: string[]) =>
  commands.find(({ name }) => name === words.slice(0, 2).join(' ')) ?? commands.find(({ name }) => name === words[0])
/** `godwit WORD...` with what follows it on the line, up to what ends a command there. */
const calls = find(/\bgodwit (?!commands?\b|godwit\b)([a-z][\w-]*(?: [^\0|;&\n`)]*)?)/g, [...spans, ...quoted])
const wordsOf = ({ groups: [text = ''] }: Found) => text.split(/\s+/)

test('every command that a text names exists', () => {
  assert.ok(calls.length > 100, 'the reader of commands finds next to none')
  const isKnown = (call: Found) => {
    const words = wordsOf(call).map(word => word.replace(/[^\w-]+$/, ''))
    return commandOf(words) !== undefined || groups.has(words[0] ?? '')
  }
  none(
    calls.filter(call => !isKnown(call)),
    'no such command',
  )
})

test('every option that a text gives to a command is one of it', () => {
  const wrong = calls.flatMap(call => {
    const command = commandOf(wordsOf(call).map(word => word.replace(/[^\w-]+$/, '')))
    if (!command || command.isPassThrough) return []
    const options = [...call.text.matchAll(/(?<![\w-])--([a-z][a-z0-9-]*)/g)].map(([, name]) => name!)
    return options.filter(name => name !== 'help' && !(name in command.options)).map(name => ({ ...call, text: `${call.text}: --${name}` }))
  })
  none(wrong, 'no such option of the command')
})

test('every option that a hint or a message names is one of some command', () => {
  /** A command that reads its own words says in its help which. */
  const own = commands.flatMap(({ isPassThrough, details = '', examples }) =>
    isPassThrough ? [...`${details} ${examples.join(' ')}`.matchAll(/--([a-z-]+)/g)].map(([, name]) => name!) : [],
  )
  const setup = [...readFileSync(join(root, 'scripts/setup.js'), 'utf8').matchAll(/'--([a-z-]+)'/g)].map(([, name]) => name!)
  const known = new Set(commands.flatMap(({ options }) => Object.keys(options)).concat('help', 'version', own, setup))
  const ours = quoted.filter(({ path }) => /^(cli|edge-node|gateway|wire)\//.test(path))
  const named = find(/(?<=[ (]|\0)--([a-z][a-z-]+)(?=[ ),.:;]|$)/g, ours)
  assert.ok(named.length > 10)
  none(
    named.filter(({ groups: [name = ''] }) => !known.has(name)),
    'no command has this option',
  )
})

test('every script that a text runs is in package.json', () => {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  const runs = find(/\bnpm run ([a-z][\w:-]*)/g, [...spans, ...quoted])
  assert.ok(runs.length > 10)
  none(
    runs.filter(({ groups: [name = ''] }) => !(name in scripts)),
    'no such script',
  )
})

// --- configuration ---

const configs = { 'node.yaml': NodeConfig, 'gateway.yaml': GatewayConfig, 'client.yaml': ClientConfig }
const fields = Object.values(configs).flatMap(schema => fieldsOf(schema))
const segments = new Set(fields.flatMap(field => field.split('.')))
const tops = new Set(fields.map(field => field.split('.')[0]!))
const isField = (name: string): boolean => {
  const pattern = new RegExp(
    `^${name
      .split('.')
      .map(part => `(?:${part}|\\*)`)
      .join('\\.')}(?:\\.|$)`,
  )
  return fields.some(field => pattern.test(field))
}

test('every configuration field can be found in its sample', () => {
  for (const [sample, schema] of Object.entries(configs)) {
    // The sample leads there for the policy's many settings.
    const pages = [`packaging/${sample}`, ...(sample === 'gateway.yaml' ? ['gateway/policy/settings.ts'] : [])]
    const text = pages.map(page => readFileSync(join(root, page), 'utf8')).join('\n')
    const all = [...new Set(fieldsOf(schema).flatMap(field => field.split('.')))].filter(name => name !== '*')
    assert.ok(all.length > 5, sample)
    const absent = all.filter(name => !new RegExp(`(^|[\\s{,#])${name}:`, 'm').test(text))
    assert.equal(absent, [], `fields that packaging/${sample} does not show`)
  }
})

/** Comments that explain a value begin with it. */
const VALUES = new Set(['off', 'auto', 'embedded', 'external', 'default'])

test('every field that a sample shows exists', () => {
  for (const [sample, schema] of Object.entries(configs)) {
    const known = new Set(fieldsOf(schema).flatMap(field => field.split('.')))
    const chosen = fieldsOf(schema).some(field => field.includes('*'))
    const shown = find(
      /^(?:# ?)?( *)([a-z][A-Za-z0-9]*):(?= |$)/g,
      files.filter(({ path }) => path === `packaging/${sample}`),
    )
    assert.ok(shown.length > 5, sample)
    // A name that a person chooses stands below another field.
    const wrong = shown.filter(
      ({ groups: [indent = '', name = ''] }) => !known.has(name) && !VALUES.has(name) && !(chosen && indent.length > 0),
    )
    none(wrong, `packaging/${sample} shows what is no field`)
  }
})

test('every dotted field that a hint, a message or a document names exists', () => {
  const pattern = new RegExp(`(?<![\\w./$-])((?:${[...tops].join('|')})(?:\\.[a-z][A-Za-z0-9]*)+)(?![\\w(/-])`, 'g')
  const ours = quoted.filter(({ path }) => /^(cli|edge-node|gateway|ops|wire)\//.test(path))
  const named = find(pattern, [...spans.filter(({ path }) => path.endsWith('.md')), ...ours])
  assert.ok(named.length > 20, 'the reader of fields finds next to none')
  const isOther = (name: string) => /\.(ts|yaml|service|sock|json|keys?|cert|pub|md|js|c|img|net)$/.test(name) || OTHER_DOTTED.has(name)
  none(
    named.filter(({ groups: [name = ''] }) => !isOther(name) && !isField(name)),
    'no such field',
  )
})

/** RPC methods, loggers' events and fields of messages that begin with the name of a configuration field. */
const OTHER_DOTTED = new Set(['site.state', 'gateway.request', 'site.request', 'qemu.log', 'qemu.pid', 'admin.token', 'listen.tls'])

test('every field that a hint names by one word of capitals within exists', () => {
  const hints = find(
    /hint: [^\n]*/g,
    code.filter(({ path }) => /^(cli|edge-node|gateway|ops)\//.test(path)),
  ).concat(
    find(
      /row\([^\n]*|^ +'[^']*',$/g,
      code.filter(({ path }) => path === 'wire/errors.ts'),
    ),
  )
  const named = hints.flatMap(({ at, text }) =>
    [...text.replace(/\$\{[^}]*\}/g, '').matchAll(/(?<![\w.$])([a-z]+(?:[A-Z][a-z]+)+)(?![\w(])/g)].map(([word]) => ({
      at,
      text: word,
      groups: [word],
    })),
  )
  assert.ok(named.length > 0)
  const inCode = /^(undefined|typeof)$/
  none(
    named.filter(({ text }) => !segments.has(text) && !OTHER_WORDS.has(text) && !inCode.test(text)),
    'no configuration has this field',
  )
})

/** Of a command's or a message's form, and names within a hint's expression. */
const OTHER_WORDS = new Set(['lastError', 'notAfter', 'commandId'])

test('every variable that a text names is read', () => {
  const readers = files
    .filter(({ path }) => /^(cli|bin|ops|scripts|bench|test)\//.test(path))
    .map(({ text }) => text)
    .join('\n')
  const named = find(/\b(GODWIT_[A-Z_]+)\b/g, [...prose, ...code])
  assert.ok(named.length > 10)
  none(
    named.filter(({ groups: [name = ''] }) => !new RegExp(`['"]${name}['"]|\\b${name}:|env\\.${name}\\b`).test(readers)),
    'no code reads this variable',
  )
})

test('every error code that a text names is in the table', () => {
  const families = [...new Set(Object.keys(ERRORS).map(name => name.split('_')[0]))].filter(name => name !== 'INTERNAL')
  const pattern = new RegExp(`(?<![\\w-])((?:${families.join('|')})_[A-Z_]*[A-Z])(?![\\w])`, 'g')
  const named = find(pattern, [...prose, ...code])
  assert.ok(named.length > 200)
  /** QEMU's events, what ETSI and RFC 9000 say. */
  const foreign = new Set(['GUEST_PANICKED', 'MIGRATION_PASS', 'NOT_TRANSFERRED', 'CONNECTION_CLOSE', 'VERSION_CODENAME', 'VERSION_ID'])
  const constant = new Set(
    code.flatMap(({ text }) => [...text.matchAll(/\b(?:const|static|readonly) ([A-Z][A-Z0-9_]+)\b/g)].map(([, name]) => name!)),
  )
  none(
    named.filter(({ groups: [name = ''] }) => !Object.hasOwn(ERRORS, name) && !constant.has(name) && !foreign.has(name)),
    'no such code',
  )
})

test.run()
