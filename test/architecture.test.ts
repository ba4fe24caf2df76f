// The shape of the project, held by rules: who may import whom, where a library may be named, which files are pure, how files look.
// "The gateway cannot read guest memory" is one of them. A rule that is broken names file and line.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  closure,
  cycles,
  type Import,
  importsOf,
  projectFiles,
  root,
  type SourceFile,
  trail,
  withoutComments,
} from './support/source-tree.ts'
import { assert, suite } from './support/suite.ts'

const test = suite('architecture')

/** Who may import whom; a folder may always import itself. `types` only: nothing is left when types are stripped. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  wire: [],
  crypto: ['wire'],
  transport: ['wire', 'ops'],
  ops: ['wire'],
  'edge-node': ['wire', 'crypto', 'transport', 'ops'],
  gateway: ['wire', 'crypto', 'transport', 'ops'],
  'sim-network': ['wire', 'transport', 'ops'],
  guest: [],
  bin: ['cli'],
  cli: ['wire', 'crypto', 'transport', 'ops', 'edge-node', 'gateway', 'sim-network', 'guest', 'bench'],
  bench: ['wire', 'crypto', 'transport', 'ops', 'edge-node', 'gateway', 'sim-network', 'guest'],
  fuzz: ['wire', 'crypto', 'transport', 'ops', 'edge-node', 'gateway', 'sim-network'],
  scripts: ['wire', 'crypto', 'transport', 'ops', 'edge-node', 'gateway', 'sim-network', 'guest', 'bin', 'bench', 'cli', 'test'],
}
const TYPES_ONLY = [{ from: 'sim-network', to: 'transport' }]

/** All of crypto that the gateway may name: who somebody is. */
const GATEWAY_CRYPTO = ['crypto/certificate.ts', 'crypto/link-auth.ts', 'crypto/identity.ts']
/** What would let it read what it relays: no module that it loads may load these, by whatever way. */
const SECRET_CRYPTO = ['handshake', 'noise', 'record', 'cutter', 'keys', 'page-hash', 'manifest', 'prologue'].map(
  name => `crypto/${name}.ts`,
)

const PURE = [/^wire\//, /^crypto\/(?!sodium(-native)?\.ts)/, /^edge-node\/(rate|stream)\//, /^edge-node\/migration\/states\.ts$/]
  .concat([
    /^gateway\/policy\//,
    /^gateway\/control\/transitions\.ts$/,
    /^sim-network\/(link|queue|loss|random|deque|blackout|profiles)\.ts$/,
    /^sim-network\/mobility\//,
    /^cli\/sim\/(?!load|traces)/,
  ])
  .concat([/^guest\/(beats|cpio)\.ts$/])
const IMPURE_MODULES = /^node:(net|tls|dgram|http|https|http2|fs|timers|child_process|worker_threads|os|cluster|readline)(\/|$)/
const IMPURE_GLOBALS = /(?<![.\w'])(setTimeout|setInterval|setImmediate|Date\.now|performance\.now|process\.(?!stdout\b))/

/** Files with a function over the limit (70 lines) that is to stay so, and why. */
const LONG_FUNCTIONS: Record<string, string> = {}

const files = projectFiles()
const isCode = ({ path }: SourceFile) => /\.(ts|js)$/.test(path)
const isTest = (path: string) => path.startsWith('test/')
const folderOf = (path: string) => path.split('/')[0] ?? ''
const code = files.filter(isCode)
const imports = code.flatMap(importsOf)
const ours = imports.filter(({ to }) => /\.[jt]s$/.test(to) && !to.startsWith('node:') && existsSync(join(root, to)))
const at = ({ from, line, to }: Import) => `${from}:${line} imports ${to}`

/** Fails with one line for each breach. */
function none(breaches: string[], rule: string): void {
  assert.ok(breaches.length === 0, `${rule}:\n${breaches.map(text => `      ${text}`).join('\n')}`)
}

function linesWith(pattern: RegExp, chosen: SourceFile[]): string[] {
  return chosen.flatMap(({ path, text }) =>
    text.split('\n').flatMap((line, i) => (pattern.test(line) ? [`${path}:${i + 1}: ${line.trim().slice(0, 120)}`] : [])),
  )
}

test('the reader of imports sees every form of them', () => {
  const text = [
    ...[
      "import a from 'a'",
      "import { type B, c } from './b.ts'",
      "import type { D } from './d.ts'",
      "import { type E, type F } from './e.ts'",
    ],
    ...[
      "import 'side'",
      "export * from './g.ts'",
      "export type { H } from '../h.ts'",
      "// import x from 'not'",
      "const i = await import('./i.ts')",
    ],
    ...['import {', '  type J,', "} from './j.ts'", "new Worker(new URL('./k.ts', import.meta.url))", "/* import y from 'neither' */"],
  ].join('\n')
  assert.equal(
    importsOf({ path: 'x/y.ts', text }).map(({ to, typesOnly }) => `${to}${typesOnly ? ' (types)' : ''}`),
    [...['a', 'x/b.ts', 'x/d.ts (types)', 'x/e.ts (types)', 'side', 'x/g.ts', 'h.ts (types)', 'x/j.ts (types)'], ...['x/i.ts', 'x/k.ts']],
  )
  const graph = [
    ...importsOf({ path: 'a.ts', text: "import './b.ts'" }),
    ...importsOf({ path: 'b.ts', text: "import './c.ts'\nimport './a.ts'" }),
  ]
  assert.is(trail(closure(['a.ts'], graph), 'c.ts'), 'a.ts -> b.ts -> c.ts')
  assert.equal(cycles(['a.ts', 'b.ts'], graph), [['a.ts', 'b.ts', 'a.ts']])
})

test('every import of ours leads to a file', () => {
  none(
    imports
      .filter(({ from, to }) => /^[^@].*\.(ts|js)$/.test(to) && to.includes('/') && !isTest(from) && !ours.some(own => own.to === to))
      .map(at),
    'no such file',
  )
})

test('each folder imports only what it may', () => {
  const breaches = ours.filter(({ from, to, typesOnly }) => {
    const [here, there] = [folderOf(from), folderOf(to)]
    if (here === there || isTest(from) || from === here) return false
    if (TYPES_ONLY.some(rule => rule.from === here && rule.to === there) && !typesOnly) return true
    return !MAY_IMPORT[here]?.includes(there)
  })
  none(breaches.map(at), 'a folder imports what it may not')
})

test('the gateway names nothing of crypto but certificates, link authentication and identities', () => {
  const breaches = ours.filter(({ from, to }) => from.startsWith('gateway/') && to.startsWith('crypto/') && !GATEWAY_CRYPTO.includes(to))
  none(breaches.map(at), 'the gateway must not be able to read what it relays')
})

test('nothing that the gateway loads can open a record, by whatever way', () => {
  const starts = code.map(({ path }) => path).filter(path => path.startsWith('gateway/'))
  const loaded = closure(starts, ours)
  none(
    SECRET_CRYPTO.filter(path => loaded.has(path)).map(path => trail(loaded, path)),
    'the gateway must not be able to read what it relays',
  )
  assert.ok(SECRET_CRYPTO.filter(path => existsSync(join(root, path))).length >= 3, 'the list of secret files is out of date')
})

test('no file imports itself by way of others', () => {
  none(
    cycles(
      code.map(({ path }) => path),
      ours,
    ).map(path => path.join(' -> ')),
    'import cycle',
  )
})

test('a library is named in one file only', () => {
  const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const libraries = Object.keys({ ...dependencies, ...optionalDependencies }).filter(name => !name.startsWith('node-linux-'))
  const breaches = libraries.flatMap(name => {
    const isPart = (to: string) => to === name || to.startsWith(`${name}/`)
    // A scoped name is a library's wherever it is quoted (a native binding may be found by require); 'level' is also a word.
    const quoted = name.startsWith('@') ? new RegExp(`['"\`]${name.replace(/[/.-]/g, '\\$&')}(['"\`]|/[a-z])`) : /$^/
    const named = code.filter(
      file => !isTest(file.path) && (importsOf(file).some(({ to }) => isPart(to)) || quoted.test(withoutComments(file.text))),
    )
    return named.length > 1 ? [`${name}: ${named.map(({ path }) => path).join(', ')}`] : []
  })
  none(breaches, 'a library is named in more than one file')
})

test('pure files reach for no network, files, timers or clocks', () => {
  const pure = code.filter(({ path }) => PURE.some(pattern => pattern.test(path)))
  assert.ok(pure.length > 10, 'the list of pure files is out of date')
  const names = new Set(pure.map(({ path }) => path))
  none(imports.filter(({ from, to, typesOnly }) => names.has(from) && IMPURE_MODULES.test(to) && !typesOnly).map(at), 'a pure file does IO')
  none(
    linesWith(
      IMPURE_GLOBALS,
      pure.map(({ path, text }) => ({ path, text: withoutComments(text) })),
    ),
    'a pure file has a clock of its own',
  )
})

// Tests say what they are about in their sentences.
test('every source file but tests opens with a comment', () => {
  const sources = files.filter(({ path }) => /\.(ts|js|c|sh)$/.test(path) || path === 'guest/init' || path === '.ci/run')
  const opens = (text: string) => /^(\/\/|\/\*|# )/.test(text.replace(/^#!.*\n/, ''))
  none(
    sources.filter(({ path, text }) => !opens(text) && path !== 'bin/godwit.js' && !path.endsWith('.test.ts')).map(({ path }) => path),
    'no opening comment',
  )
})

test('functions are short enough to be read at once', () => {
  // biome's own rule, with a configuration of its own; suites of tests are left out: each is one function by its form.
  const args = ['lint', '--config-path=test/support/function-length.json', '--reporter=json', '--max-diagnostics=none', '.']
  const { stdout, stderr } = spawnSync(join(root, 'node_modules/.bin/biome'), args, {
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
    cwd: root,
  })
  const report = JSON.parse(stdout || `{"error": ${JSON.stringify(stderr)}}`) as BiomeReport
  assert.ok(report.diagnostics, `biome gave no report: ${stderr}`)
  const long = report.diagnostics.filter(({ category }) => category.endsWith('noExcessiveLinesPerFunction'))
  none(
    long
      .filter(({ location }) => !Object.hasOwn(LONG_FUNCTIONS, location.path))
      .map(({ location, message }) => `${location.path}:${location.start.line}: ${message}`),
    'a function is too long',
  )
  assert.ok(Object.keys(LONG_FUNCTIONS).length <= 3, 'the list of exceptions is to stay tiny')
})

type BiomeReport = { diagnostics?: { category: string; message: string; location: { path: string; start: { line: number } } }[] }

// Patterns in pieces, or this file would break its own rules.
const piece = (...parts: string[]) => parts.join('')

test('nothing is left to do later in a comment', () => {
  none(
    linesWith(new RegExp(`\\b(${piece('TO', 'DO')}|${piece('FIX', 'ME')}|${piece('X', 'XX')})\\b`), files),
    'open ends belong into an issue',
  )
})

test('no path of a machine and no package host is written down', () => {
  const hosts = [
    piece('registry', '\\.npmjs'),
    piece('registry', '\\.yarnpkg'),
    piece('deb', '\\.debian\\.org'),
    piece('debian', '\\.org/debian'),
  ].concat([piece('artifact', 'registry'), piece('artifact', 'ory'), piece('proxy', '\\.golang'), piece('pypi', '\\.org')])
  none(linesWith(new RegExp(hosts.join('|')), files), 'a package host')
  const paths = [piece('/wo', 'rk/'), piece('/ro', 'ot/')]
  none(linesWith(new RegExp(`(?<![\\w.])(${paths.join('|')})`), files), 'a path of one machine')
  none(linesWith(new RegExp(piece('[\'"`]/t', 'mp/')), code), 'a temporary folder not from os.tmpdir()')
  none(
    linesWith(
      /"resolved": "http/,
      files.filter(({ path }) => path === 'package-lock.json'),
    ),
    'the lock file names a host',
  )
})

test('tests use the suite with deadlines and no hooks', () => {
  const tests = code.filter(({ path }) => path.endsWith('.test.ts') && path !== 'test/runner.test.ts')
  none(linesWith(new RegExp(piece("from '", "uvu'")), tests), 'use support/suite.ts')
  none(linesWith(/\.(before|after)(\.each)?\(\s*(async\b|\(|\w+\))/, tests), 'hooks fail silently: use fixtures')
})

test.run()
