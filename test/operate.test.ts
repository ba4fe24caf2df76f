// docs/operate is complete and true: every configuration field with its default, every error code, every metric.
// Enters: the tables of the documents, the schemas, the error table, the metrics of the code. Leaves: rows that are
// missing, wrong or too many.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ClientConfig } from '../cli/config.ts'
import { NodeConfig, nodeDefaults } from '../edge-node/config.ts'
import { parseSpec } from '../edge-node/vm/spec.ts'
import { GatewayConfig, gatewayDefaults } from '../gateway/config.ts'
import { POLICY_NAMES } from '../gateway/policy/settings.ts'
import { GATES } from '../gateway/policy/types.ts'
import { MEASURED } from '../mqtt/topics.ts'
import { ERRORS } from '../wire/errors.ts'
import { fieldsOf } from './support/fields.ts'
import { definedMetrics } from './support/metrics.ts'
import { root } from './support/source-tree.ts'
import { assert, suite } from './support/suite.ts'

const test = suite('docs/operate')
const read = (name: string) => readFileSync(join(root, 'docs/operate', name), 'utf8')

/** The rows of all tables of a text whose first column has this heading; cells without code quotes. */
function rowsOf(text: string, first: string): string[][] {
  let isTable = false
  return text.split('\n').flatMap(line => {
    if (!line.startsWith('|')) isTable = false
    const cells = line
      .split('|')
      .slice(1, -1)
      .map(cell => cell.trim())
    if (cells[0] === first) isTable = true
    return isTable && cells[0] !== first && !/^-+$/.test(cells[0] ?? '') ? [cells] : []
  })
}

const bare = (cell = '') => cell.replaceAll('`', '')

// --- configuration ---

/** A part of configure.md: from its heading to the next of the same level. */
const section = (name: string) =>
  read('configure.md')
    .split(/^## /m)
    .find(part => part.startsWith(name)) ?? ''

/** What a file with nothing but these fields comes to. */
const paths = { configDir: '/etc/godwit', stateDir: '/var/lib/godwit', runDir: '/run/godwit' }
const key = { publicKey: `${'A'.repeat(43)}=` }
const gateway = GatewayConfig.parse({
  ...gatewayDefaults(paths),
  mqtt: { ...gatewayDefaults(paths).mqtt, measurementKeys: { any: key }, places: { any: {} } },
  policy: { vms: { any: {} } },
  mec021: { host: '127.0.0.1', port: 7446, tokenFile: 'x', callbackHosts: [] },
})
const { gateway: gatewayOfNode, ...restOfNode } = nodeDefaults(paths)
const node = { ...NodeConfig.parse({ ...restOfNode, site: 'a', gateway: { ...gatewayOfNode, host: 'g' } }), limits: restOfNode.limits }
const configs = { 'gateway.yaml': [GatewayConfig, gateway], 'node.yaml': [NodeConfig, node], 'client.yaml': [ClientConfig, {}] } as const

/** These have a value above only because a file must have them. */
const REQUIRED = new Set(['site', 'gateway.host', 'mec021.host', 'mec021.port', 'mec021.tokenFile', 'mec021.callbackHosts'])

function valueAt(config: unknown, field: string): unknown {
  let at = config
  for (const part of field.replaceAll('*', 'any').split('.')) at = (at as Record<string, unknown> | undefined)?.[part]
  return at
}

function shown(value: unknown): string {
  if (Array.isArray(value) && value.length === MEASURED.length) return 'all'
  if (value === key.publicKey) return '-'
  if (Array.isArray(value)) return value.length === 0 ? '[]' : ''
  if (typeof value === 'object' && value !== null) return Object.keys(value).every(name => name === 'any') ? '{}' : ''
  return value === undefined ? '-' : String(value)
}

test('configure.md has every field of every file, and no other', () => {
  for (const [file, [schema]] of Object.entries(configs)) {
    const rows = rowsOf(section(file), 'field').map(([field]) => bare(field))
    const all = [...new Set(fieldsOf(schema))]
    const isParent = (field: string) => all.some(other => other.startsWith(`${field}.`))
    assert.ok(rows.length > 10, file)
    assert.equal(
      rows.filter((field, i) => rows.indexOf(field) !== i),
      [],
      `${file}: fields with two rows`,
    )
    assert.equal(
      all.filter(field => !isParent(field) && !rows.includes(field)),
      [],
      `fields of ${file} without a row in docs/operate/configure.md`,
    )
    assert.equal(
      rows.filter(field => !all.includes(field)),
      [],
      `rows of ${file} that are no fields`,
    )
  }
})

test('the defaults in configure.md are those of the code', () => {
  let compared = 0
  for (const [file, [, config]] of Object.entries(configs)) {
    for (const [field = '', cell = ''] of rowsOf(section(file), 'field')) {
      const name = bare(field)
      const value = shown(valueAt(config, name))
      if (cell === '**required**') assert.ok(REQUIRED.has(name) || value === '-', `${file}: ${name} has the default ${value}`)
      else {
        assert.is(bare(cell), value === '' ? '-' : value, `${file}: the default of ${name}`)
        compared += 1
      }
    }
  }
  assert.ok(compared > 80, `only ${compared} defaults compared`)
})

test('a field without a default that configure.md does not call required may be left out', () => {
  assert.ok(!ClientConfig.safeParse({}).error)
  for (const field of ['site', 'gateway.host'])
    assert.ok(rowsOf(section('node.yaml'), 'field').some(([name, cell]) => bare(name) === field && cell === '**required**'))
  const sample = { ...restOfNode, site: 'a', gateway: gatewayOfNode }
  assert.ok(NodeConfig.safeParse(sample).error, 'a node without gateway.host')
})

test('every variable that the command line reads is in configure.md', () => {
  const files = ['cli/config.ts', 'cli/paths.ts', 'cli/output.ts', 'cli/commands/enrol.ts', 'cli/sim/load.ts']
  const variables = files.flatMap(file => [...readFileSync(join(root, file), 'utf8').matchAll(/'(GODWIT_[A-Z_]+)'|\b(GODWIT_[A-Z_]+):/g)])
  const names = new Set(variables.map(([, quoted, plain]) => quoted ?? plain ?? ''))
  assert.ok(names.size > 12)
  const listed = rowsOf(section('Environment'), 'variable').flatMap(([cell = '']) =>
    [...cell.matchAll(/`(\w+)`/g)].map(([, name]) => name!),
  )
  assert.equal(
    [...names].filter(name => !listed.includes(name)),
    [],
    'variables that are not listed',
  )
})

// --- VM specifications ---

/** The fields that a specification may have at a place, as its error message lists them. */
function allowedFields(yaml: string): string[] {
  try {
    parseSpec(yaml)
  } catch (error) {
    const list = /allowed are ([^\n]*)/.exec((error as Error).message)?.[1] ?? ''
    return list.replace(/ \([^)]*\)/g, '').split(', ')
  }
  return []
}

test('vm.md has every field of a specification with its default', () => {
  const minimal = 'name: web-1\nmemory: 384MiB\nkernel: vmlinuz\n'
  const parts = read('vm.md').split(/^## /m)
  const rows = (heading: string) => rowsOf(parts.find(part => part.startsWith(heading)) ?? '', 'field')
  const names = (heading: string) => rows(heading).map(([name]) => bare(name))
  assert.equal(names('Fields').sort(), allowedFields(`${minimal}nonsense: 1\n`).sort())
  const ofFile = allowedFields(`${minimal}disks: [{ file: a, mode: readonly, format: raw, nonsense: 1 }]\n`)
  const ofLocal = allowedFields(`${minimal}disks: [{ mode: local, size: 1GiB, nonsense: 1 }]\n`)
  assert.equal(names('Disks').sort(), [...new Set([...ofFile, ...ofLocal])].sort())
  assert.equal(names('Cloud-init'), allowedFields(`${minimal}cloudInit: { userData: a, nonsense: 1 }\n`))
  assert.equal(names('NICs').sort(), allowedFields(`${minimal}nics: [{ type: user, nonsense: 1 }]\n`).sort())
  assert.equal(names('Services'), allowedFields(`${minimal}nics: [{ type: user }]\nservices: [{ name: a, port: 1, nonsense: 1 }]\n`))
  const { memoryBytes: _, ...spec } = parseSpec(minimal)
  for (const [name = '', cell = ''] of rows('Fields')) {
    if (cell !== '**required**' && bare(name) !== 'kernel') assert.is(bare(cell), shown(valueAt(spec, bare(name))), name)
  }
  const modes = rowsOf(read('vm.md'), 'mode').map(([mode]) => mode)
  for (const mode of modes) {
    const disk = mode === 'local' ? '{ mode: local, image: a }' : `{ file: a, mode: ${mode}, format: raw }`
    assert.ok(parseSpec(`${minimal}disks: [${disk}]\n`), mode)
  }
  for (const [, yaml = ''] of read('vm.md').matchAll(/```yaml\n([\s\S]*?)```/g)) assert.ok(parseSpec(yaml))
})

// --- errors ---

test('troubleshoot.md has every error code with its exit code, whether to retry, a cause and what to do', () => {
  const rows = rowsOf(read('troubleshoot.md'), 'code')
  const codes = rows.map(([code]) => bare(code))
  assert.equal(
    codes.filter((code, i) => codes.indexOf(code) !== i),
    [],
    'codes with two rows',
  )
  assert.equal(
    Object.keys(ERRORS).filter(code => !codes.includes(code)),
    [],
    'codes without a row in docs/operate/troubleshoot.md',
  )
  assert.equal(
    codes.filter(code => !Object.hasOwn(ERRORS, code)),
    [],
    'rows of no code',
  )
  for (const [code = '', exit, retry, cause = '', remedy = ''] of rows) {
    const row = ERRORS[bare(code) as keyof typeof ERRORS]
    assert.equal([exit, retry], [String(row.exit), row.retryable ? 'yes' : 'no'], code)
    assert.ok(cause.length > 10 && remedy.length > 3, `${code}: a cause and what to do`)
  }
})

// --- metrics ---

test('metrics.md has every metric with its type and labels, and no other', () => {
  const defined = definedMetrics()
  assert.ok(defined.size > 30)
  const rows = rowsOf(read('metrics.md'), 'metric')
  const names = rows.map(([name]) => bare(name))
  assert.equal(
    [...defined.keys()].filter(name => !names.includes(name)),
    [],
    'metrics without a row in docs/operate/metrics.md',
  )
  assert.equal(
    names.filter(name => !defined.has(name)),
    [],
    'rows of no metric',
  )
  for (const [name = '', type, labels = '', what = ''] of rows) {
    const facts = defined.get(bare(name))
    assert.equal([type, labels], [facts?.type, facts?.labels.join(', ')], name)
    assert.ok(what.length > 5, name)
  }
})

// --- the policy ---

test('policy.md has every gate, in the order in which they are checked, and every policy', () => {
  const gates = rowsOf(read('policy.md'), 'gate').map(([name]) => bare(name))
  assert.equal(
    gates,
    GATES.filter(name => name !== 'none'),
  )
  const policies = rowsOf(read('policy.md'), 'name').flatMap(([cell = '']) => [...cell.matchAll(/`([\w-]+)`/g)].map(([, name]) => name!))
  assert.equal(policies.sort(), [...POLICY_NAMES].sort())
})

test.run()
