// The shape of the project, held by rules: who may import whom, where a library may be named, which files are pure, how
// files look. "The gateway cannot read guest memory" is one of them. A rule that is broken names file and line.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  closure,
  cycles,
  exportsOf,
  type Import,
  importsOf,
  namesImported,
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
  planning: ['wire'],
  identity: ['wire', 'crypto', 'ops'],
  mqtt: ['wire', 'crypto', 'ops'],
  'edge-node': ['wire', 'crypto', 'identity', 'transport', 'ops', 'planning'],
  gateway: ['wire', 'crypto', 'identity', 'transport', 'ops', 'planning', 'mqtt'],
  'sim-network': ['wire', 'transport', 'ops', 'planning'],
  guest: [],
  bin: ['cli'],
  cli: ['wire', 'crypto', 'identity', 'transport', 'ops', 'planning', 'mqtt', 'edge-node', 'gateway', 'sim-network', 'guest', 'bench'],
  bench: ['wire', 'crypto', 'identity', 'transport', 'ops', 'planning', 'mqtt', 'edge-node', 'gateway', 'sim-network', 'guest'],
  fuzz: ['wire', 'crypto', 'transport', 'ops', 'mqtt', 'edge-node', 'gateway', 'sim-network'],
  scripts: ['wire', 'crypto', 'transport', 'ops', 'mqtt', 'edge-node', 'gateway', 'sim-network', 'guest', 'bin', 'bench', 'cli', 'test'],
}
/**
 * The floors of a folder, from the lowest up. A room (a folder, or a file of its own) imports only rooms on lower
 * floors; rooms on one floor do not know each other. '*' is all files that stand in no room: they are the top floor,
 * and may import each other.
 */
const FLOORS: Record<string, readonly (readonly string[])[]> = {
  gateway: [['store', 'relay'], ['sites'], ['handoff'], ['policy', 'services'], ['fronts'], ['*']],
  'gateway/fronts': [['mqtt', 'mec021'], ['*']],
  'edge-node': [['qmp', 'stream', 'rate'], ['pages', 'channel', 'disks'], ['vm', 'link'], ['registry'], ['migration', 'images'], ['*']],
}
const TYPES_ONLY = [{ from: 'sim-network', to: 'transport' }]

/** All of crypto that the gateway may name: who somebody is, and what was signed for it. */
const GATEWAY_CRYPTO = ['certificate', 'link-auth', 'identity', 'command-keys', 'command-check', 'fencing'].map(name => `crypto/${name}.ts`)
/** What would let it read what it relays: no module that it loads may load these, by whatever way. */
const SECRET_CRYPTO = /^crypto\/channel\//

const PURE = [
  /^wire\//,
  /^crypto\/(?!sodium(-native)?\.ts)/,
  /^edge-node\/(rate|stream)\//,
  /^edge-node\/migration\/(states|conversation-states)\.ts$/,
]
  .concat([
    /^gateway\/policy\/(?!policy-loop)/,
    /^gateway\/fronts\/(event-ring|event-source|migration-pages)\.ts$/,
    /^gateway\/handoff\/(transitions|verdict|phases|problems|users|home|checks|ownership|conclude|deadlines|ended)\.ts$/,
    /^planning\//,
    /^sim-network\/(link|queue|loss|random|deque|blackout|profiles)\.ts$/,
    /^sim-network\/mobility\//,
    /^cli\/sim\/(?!load|traces)/,
  ])
  .concat([/^guest\/(beats|cpio)\.ts$/])
const IMPURE_MODULES = /^node:(net|tls|dgram|http|https|http2|fs|timers|child_process|worker_threads|os|cluster|readline)(\/|$)/
const IMPURE_GLOBALS = /(?<![.\w'])(setTimeout|setInterval|setImmediate|Date\.now|performance\.now|process\.(?!stdout\b))/

/** Files with a function over the limit (70 lines) that is to stay so, and why. */
const LONG_FUNCTIONS: Record<string, string> = {}

/** Exports that no file of the product imports by name, and why they stay. */
const UNUSED_EXPORTS: Record<string, string> = {
  'cli/demo.ts demo': 'godwit demo imports it by a path that it computes',
  'crypto/certificate.ts encodeRoot': 'godwit root gets it from cli/signing.ts, which imports the whole file',
  'edge-node/stream/tokenize.ts tokenize': 'a second reader of the QEMU stream, which tests compare with parse.ts',
  'ops/http-client.ts requestText': 'tests read /metrics with the client that the product uses',
  'ops/script.ts numberFromEnvironment': 'tests read their sizes and seeds with it',
  'scripts/setup/debian.js signedBy': 'its test imports it by a path that it computes',
  'sim-network/clock.ts createVirtualClock': 'the clock of the ownership simulation',
}

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

test('docs/internals/architecture.md has the table of folders and their imports', () => {
  const text = readFileSync(join(root, 'docs/internals/architecture.md'), 'utf8')
  const rows = [...text.matchAll(/^\| `([\w-]+)\/` \|.*\| ([^|]*) \|$/gm)].map(([, folder = '', imports = '']) => [
    folder,
    imports === 'nothing' ? [] : imports.split(', '),
  ])
  assert.equal(Object.fromEntries(rows), MAY_IMPORT)
})

test('docs/internals/architecture.md has the floors of gateway and edge-node', () => {
  const paragraphs = readFileSync(join(root, 'docs/internals/architecture.md'), 'utf8').split('\n\n')
  for (const folder of ['gateway', 'edge-node']) {
    const list = paragraphs[paragraphs.findIndex(text => text.startsWith(`Floors of \`${folder}/\``)) + 1] ?? ''
    const floors = list.split(/\n(?=\d)/).map(item => [...item.matchAll(/`([\w-]+)\/`/g)].map(([, room]) => room!))
    const expected = (FLOORS[folder] ?? []).map(rooms => rooms.filter(room => room !== '*'))
    assert.equal(floors, expected, folder)
  }
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

test('inside gateway and edge-node every import points down', () => {
  const breaches = Object.entries(FLOORS).flatMap(([folder, floors]) => {
    const roomOf = (path: string) => {
      const [room, ...rest] = path.slice(folder.length + 1).split('/')
      return rest.length > 0 ? room! : '*'
    }
    const floorOf = (path: string) => floors.findIndex(rooms => rooms.includes(roomOf(path)))
    const inside = ours.filter(({ from, to }) => from.startsWith(`${folder}/`) && to.startsWith(`${folder}/`))
    assert.ok(inside.length > 0, `${folder}: no imports`)
    const homeless = inside.filter(({ from }) => floorOf(from) < 0).map(({ from }) => `${from}: its folder stands on no floor`)
    const upwards = inside.filter(({ from, to }) => roomOf(from) !== roomOf(to) && floorOf(to) >= floorOf(from))
    return [...new Set(homeless), ...upwards.map(at)]
  })
  none(breaches, 'an import points up, or to a room beside')
})

test('the gateway names nothing of crypto but certificates, link authentication and identities', () => {
  const breaches = ours.filter(({ from, to }) => from.startsWith('gateway/') && to.startsWith('crypto/') && !GATEWAY_CRYPTO.includes(to))
  none(breaches.map(at), 'the gateway must not be able to read what it relays')
})

test('nothing that the gateway loads can open a record, by whatever way', () => {
  const starts = code.map(({ path }) => path).filter(path => path.startsWith('gateway/'))
  const loaded = closure(starts, ours)
  const secret = code.map(({ path }) => path).filter(path => SECRET_CRYPTO.test(path))
  assert.ok(secret.length >= 3, 'the folder of secret files has moved')
  none(
    secret.filter(path => loaded.has(path)).map(path => trail(loaded, path)),
    'the gateway must not be able to read what it relays',
  )
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

test('the reader of exports sees every form of them', () => {
  const text = [
    ...['export const A = z.string()', 'export type A = string', 'export async function b() {}', 'export class C {}', 'const d = 1'],
    ...["export { e, type F as G } from './e.ts'", "export * from './h.ts'", '// export const i = 1'],
    ...["import { j, type K as L } from '../j.ts'", "const m = await import('./m.ts')", 'm.used()'],
  ].join('\n')
  const names = exportsOf({ path: 'x/y.ts', text }).map(({ name }) => name)
  assert.equal(names, ['A', 'A', 'b', 'C', 'e', 'G'])
  const used = namesImported({ path: 'x/y.ts', text })
  for (const name of ['x/e.ts e', 'x/e.ts F', 'x/h.ts used', 'j.ts j', 'j.ts K', 'x/m.ts used']) assert.ok(used.has(name), name)
  assert.not.ok(used.has('j.ts L') || used.has('x/m.ts unused'))
})

test('every export has a user in another file, and no code is there for tests only', () => {
  const userOf = (files: SourceFile[]) => {
    const users = files.map(file => ({ path: file.path, names: namesImported(file) }))
    return (name: string, path: string) => users.some(user => user.path !== path && user.names.has(name))
  }
  const isUsed = userOf(code)
  const isUsedByProduct = userOf(code.filter(({ path }) => !isTest(path)))
  const breaches = code.flatMap(file => {
    // A stand-in exports what the file that it replaces exports.
    if (file.path.startsWith('test/simulation/ownership/fakes/')) return []
    const text = withoutComments(file.text)
    return exportsOf(file).flatMap(({ path, line, name }) => {
      const key = `${path} ${name}`
      if (Object.hasOwn(UNUSED_EXPORTS, key)) return []
      if (!isUsed(key, path)) return [`${path}:${line}: no other file imports ${name}`]
      const isUsedHere = (text.match(new RegExp(`\\b${name}\\b`, 'g')) ?? []).length > 1
      const isForTests = !isTest(path) && !isUsedHere && !isUsedByProduct(key, path)
      return isForTests ? [`${path}:${line}: only tests use ${name}`] : []
    })
  })
  none(breaches, 'an export without a user (drop the keyword, or the code)')
  const names = new Set(code.flatMap(exportsOf).map(({ path, name }) => `${path} ${name}`))
  none(
    Object.keys(UNUSED_EXPORTS).filter(key => !names.has(key)),
    'a listed exception is gone',
  )
})

test('a library is named in one file only', () => {
  const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const libraries = Object.keys({ ...dependencies, ...optionalDependencies }).filter(name => !name.startsWith('node-linux-'))
  const breaches = libraries.flatMap(name => {
    const isPart = (to: string) => to === name || (to.startsWith(`${name}/`) && !existsSync(join(root, to)))
    // A scoped name is a library's wherever it is quoted (a native binding may be found by require); 'level' is also a
    // word.
    const quoted = name.startsWith('@') ? new RegExp(`['"\`]${name.replace(/[/.-]/g, '\\$&')}(['"\`]|/[a-z])`) : /$^/
    const named = code.filter(
      file => !isTest(file.path) && (importsOf(file).some(({ to }) => isPart(to)) || quoted.test(withoutComments(file.text))),
    )
    return named.length > 1 ? [`${name}: ${named.map(({ path }) => path).join(', ')}`] : []
  })
  none(breaches, 'a library is named in more than one file')
})

test('what a relay stream is for is decided by its role, never by its index', () => {
  const withStreams = code.filter(({ path }) =>
    /^(edge-node\/(channel|link|migration)\/|edge-node\/[^/]+$|gateway\/(relay|sites)\/|transport\/bulk)/.test(path),
  )
  assert.ok(withStreams.length > 40, 'the folders with relay streams have moved')
  none(linesWith(/\bindex (===|!==|[<>]=?) \d|openStream\(\d/, withStreams), 'ask wire/roles.ts')
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
