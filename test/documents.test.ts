// The form of the documents, and what they name beside test/texts.test.ts: links and anchors, metrics, HTTP routes,
// fields of messages and of configuration examples, options of scripts, the width of lines, references that lead
// nowhere. Enters: README.md and the like, docs/, the code.
// Always holds: a finding names file and line.
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { ClientConfig } from '../cli/config.ts'
import { commands } from '../cli/table.ts'
import { NodeConfig } from '../edge-node/config.ts'
import { GatewayConfig } from '../gateway/config.ts'
import { METHODS } from '../wire/control.ts'
import { fieldsOf } from './support/fields.ts'
import { root, type SourceFile, withoutComments } from './support/source-tree.ts'
import { assert, suite } from './support/suite.ts'
import { code, documents, type Found, files, find, linesOf, none, spans } from './support/texts.ts'

const test = suite('documents')
const COLUMNS_MAX = 120

/** Folders whose comments have at most 120 columns and no reference that leads nowhere. */
const CLEAN_FOLDERS: readonly string[] = [
  'bench',
  'bin',
  'cli',
  'crypto',
  'edge-node',
  'examples',
  'fuzz',
  'gateway',
  'guest',
  'identity',
  'mqtt',
  'ops',
  'packaging',
  'scripts',
  'sim-network',
  'test',
  'transport',
  'wire',
]

const documentSpans = spans.filter(({ path }) => documents.some(document => document.path === path))
/** Documents without their code blocks and code spans. */
const plain: SourceFile[] = documents.map(({ path, text }) => ({
  path,
  text: linesOf(text)
    .map(({ line, block }) => (block === undefined ? line.replace(/`[^`]*`/g, '``') : ''))
    .join('\n'),
}))

// --- links ---

/** The anchors of a document, as GitHub makes them from its headings. */
function anchorsOf(path: string): Set<string> {
  const anchors = new Set<string>()
  for (const { line, block } of linesOf(readFileSync(join(root, path), 'utf8'))) {
    const heading = block === undefined && /^#{1,6} +(.*?) *#*$/.exec(line)?.[1]
    if (!heading) continue
    const name = heading
      .replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\p{M}_ -]/gu, '')
      .replaceAll(' ', '-')
    let anchor = name
    for (let n = 1; anchors.has(anchor); n++) anchor = `${name}-${n}`
    anchors.add(anchor)
  }
  return anchors
}

/** Why a link leads nowhere; undefined when it is good. */
function faultOf(from: string, to: string): string | undefined {
  if (/^[a-z]+:/.test(to)) return undefined
  const [path = '', anchor] = to.split('#')
  const file = path === '' ? from : normalize(join(dirname(from), path))
  if (!existsSync(join(root, file))) return 'no such file'
  if (anchor === undefined) return undefined
  return file.endsWith('.md') && anchorsOf(file).has(anchor) ? undefined : 'no such heading'
}

test('every link of a document leads to a file, and its anchor to a heading', () => {
  const links = find(/\]\(<?([^)\s>]+)>?(?: "[^"]*")?\)|\b(?:src|href)="([^"]+)"|^\[[^\]]+\]: +(\S+)/g, plain)
  assert.ok(links.length > 10, 'the reader of links finds next to none')
  const faults = links.flatMap(({ at, groups: [a, b, c] }) => {
    const to = a ?? b ?? c ?? ''
    const fault = faultOf(at.split(':')[0]!, to)
    return fault ? [{ at, text: `${to}: ${fault}` }] : []
  })
  none(faults, 'a link that leads nowhere')
})

test('the reader of anchors makes them as GitHub does', () => {
  const anchors = anchorsOf('docs/internals/ownership.md')
  assert.ok(anchors.has('when-the-other-site-does-not-come-back'))
})

test('every heading of a document that a file names in quotes exists', () => {
  const sources = files.filter(({ path }) => /\.(ts|js|c|yaml|conf|service)$/.test(path))
  const named = find(/(docs\/[\w/-]+\.md)\)?,? \(?"([^"]+)"/g, sources)
  assert.ok(named.length > 1)
  const headings = (path: string) => documents.find(document => document.path === path)?.text.match(/^#+ .*$/gm) ?? []
  none(
    named.filter(({ groups: [path = '', title = ''] }) => !headings(path).some(heading => heading.replace(/^#+ /, '').startsWith(title))),
    'the document has no such heading',
  )
})

// --- names ---

test('every metric that a document names is one of the gateway or of the node', () => {
  const defined = new Map<string, string>()
  for (const { path, text } of code.filter(file => /^(gateway|edge-node)\//.test(file.path)))
    for (const [, kind = '', name = ''] of text.matchAll(/\bmetrics\.(counter|gauge|sampled|histogram)\(\s*'([a-z0-9_]+)'/g))
      defined.set(`godwit_${path.startsWith('gateway/') ? 'gateway' : 'node'}_${name}`, kind)
  assert.ok(defined.size > 30, 'the reader of metrics finds next to none')
  const isDefined = (name: string) => {
    const base = name.replace(/_(bucket|sum|count)$/, '')
    return defined.has(name) || defined.get(base) === 'histogram'
  }
  const named = find(/\b(godwit_(?:gateway|node)_[a-z0-9_]*[a-z0-9])(?!\w|_?\*)/g, documents)
  assert.ok(named.length > 10)
  none(
    named.filter(({ groups: [name = ''] }) => !isDefined(name)),
    'no such metric',
  )
})

type RouteName = { method: string; path: string }

function definedRoutes(): RouteName[] {
  const of = (folder: string) => code.filter(({ path }) => path.startsWith(folder))
  const listed = [...of('gateway/fronts/'), ...of('edge-node/')].flatMap(({ text }) =>
    [...text.matchAll(/\b(?:json|stream|socket)\('\w+', '([A-Z]+) (\/v1\/[^']*)'/g)].map(([, method = '', path = '']) => ({
      method,
      path,
    })),
  )
  const SERVICES = '/app_mobility_services'
  const mec = of('gateway/fronts/mec021/')
    .map(({ text }) => text.replace(/\$\{services\}/g, SERVICES).replace(/\bservices,/g, `'${SERVICES}',`))
    .flatMap(text =>
      [...text.matchAll(/\broute\(\s*'([A-Z]+)',\s*['`](\/[^'`]*)['`]/g)].map(([, method = '', path = '']) => ({ method, path })),
    )
    .concat(['GET', 'POST'].map(method => ({ method, path: '/subscriptions' })))
  return [...listed, ...mec]
}

test('every HTTP route that a document names exists', () => {
  const routes = definedRoutes()
  assert.ok(routes.length > 40, `the reader of routes finds ${routes.length}`)
  const isRoute = (method: string | undefined, path: string) =>
    routes.some(route => {
      const parts = route.path.split('/')
      const named = path.replace(/\?.*$/, '').split('/')
      const fits = parts.length === named.length && parts.every((part, i) => part.startsWith(':') || part === named[i])
      return fits && (method === undefined || route.method === method)
    })
  const pattern =
    /(?:\b(GET|PUT|POST|DELETE|PATCH) )?(?<![\w}\]/-])(\/(?:v1|app_mobility_services|subscriptions)(?:\/[\w{}:$-]+)*)(?=[\s`?",;)\0]|$)/g
  const named = find(pattern, documentSpans).filter(({ groups: [, path] }) => path !== '/v1')
  assert.ok(named.length > 5)
  none(
    named.filter(({ groups: [method, path = ''] }) => !isRoute(method, path)),
    'no such route',
  )
})

test('every name in camel case that a document names is in the code', () => {
  const texts = files
    .filter(({ path }) => !path.endsWith('.md'))
    .map(({ path, text }) => (/\.[jt]s$/.test(path) ? withoutComments(text) : text))
  const known = new Set(texts.flatMap(text => text.match(/[A-Za-z][A-Za-z0-9]+/g) ?? []))
  const inText = documents.map(({ path, text }) => ({
    path,
    text: text.replace(/```mermaid[\s\S]*?```|https?:\S+/g, block => block.replace(/[^\n]/g, ' ')),
  }))
  const named = find(/(?<![\w/+=.-])([a-z]+(?:[A-Z][a-z0-9]+)+)(?![\w+/=])/g, inText)
  assert.ok(named.length > 100)
  none(
    named.filter(({ groups: [name = ''] }) => !known.has(name)),
    'the code has no such name',
  )
})

test('every name in snake case in a code span of a document is in the code', () => {
  const known = new Set(
    files.filter(({ path }) => !path.endsWith('.md')).flatMap(({ text }) => text.match(/[a-z][a-z0-9]*(?:_[a-z0-9]+)+/g) ?? []),
  )
  const inline = documents.map(({ path, text }) => ({
    path,
    text: linesOf(text)
      .map(({ line, block }) => (block === undefined ? [...line.matchAll(/`([^`]*)`/g)].map(([, span]) => span).join('\0') : ''))
      .join('\n'),
  }))
  const named = find(/(?<![\w$/.-])((?!godwit_)[a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?![\w/])/g, inline)
  assert.ok(named.length > 10)
  none(
    named.filter(({ groups: [name = ''] }) => !known.has(name) && !FOREIGN_SNAKE.has(name)),
    'the code has no such name',
  )
})

/** Names of Linux and Mosquitto. */
const FOREIGN_SNAKE = new Set(['no_new_privs', 'set_tcp_nodelay'])

test('every RPC method that a document names exists', () => {
  const known = new Set(Object.keys(METHODS))
  const named = find(/(?<![\w./-])((?:site|migration|prestage|trust)\.[a-z]+)(?![\w./(:-])/g, documentSpans)
  assert.ok(named.length > 10)
  none(
    named.filter(({ groups: [name = ''] }) => !known.has(name) && !/\.(cert|request|pub|keys?|json)$/.test(name)),
    'no such method',
  )
})

test('every function that a document names right behind its file is in that file', () => {
  const named = find(/`([\w/-]+\/[\w.-]+\.ts)`[:,] `(\w+)`/g, documents)
  assert.ok(named.length > 5, 'the reader of functions finds next to none')
  const textOf = new Map(files.map(({ path, text }) => [path, text]))
  none(
    named.filter(({ groups: [path = '', name = ''] }) => !new RegExp(`\\b${name}\\b`).test(textOf.get(path) ?? '')),
    'the file has no such function',
  )
})

test('every key of a YAML example is a field of a configuration or of a VM', () => {
  const spec = readFileSync(join(root, 'edge-node/vm/spec.ts'), 'utf8').matchAll(/^ +(\w+): /gm)
  const known = new Set(
    [NodeConfig, GatewayConfig, ClientConfig]
      .flatMap(schema => fieldsOf(schema))
      .flatMap(field => field.split('.'))
      .concat(
        [...spec].map(([, name = '']) => name),
        ['type'],
      ),
  )
  const blocks = documents.map(({ path, text }) => ({
    path,
    text: linesOf(text)
      .map(({ line, block }) => (block === 'yaml' ? line.replace(/#.*$|"[^"]*"/g, '') : ''))
      .join('\n'),
  }))
  none(
    find(/(?:^|[\s{,])([a-z][A-Za-z]*):(?=\s|$)/g, blocks).filter(({ groups: [name = ''] }) => !known.has(name)),
    'no such field',
  )
})

/** Whether a program of these sources reads the option `--name`. */
const has = (texts: string[], name: string) => texts.some(text => new RegExp(`(?:\\b${name}|'${name}'): \\{|--${name}\\b`).test(text))

test('every option that a document gives to a script is one of it', () => {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  const sources = (script: string) => {
    const main = /([\w/-]+\.[jt]s)(?: \w+)?$/.exec(scripts[script] ?? '')?.[1] ?? ''
    return files.filter(({ path }) => path === main || path.startsWith(`${dirname(main)}/`)).map(({ text }) => text)
  }
  const wrong: Found[] = []
  for (const run of find(/\bnpm run ([a-z][\w:-]*) -- ([^\0|;&]*)/g, documentSpans)) {
    const [script = '', words = ''] = run.groups
    for (const [, name = ''] of words.matchAll(/(?<![\w-])--([a-z][a-z-]*)/g)) if (!has(sources(script), name)) wrong.push(run)
  }
  none(wrong, 'the script has no such option')
})

test('every option that a document names alone is one of some command or script', () => {
  const everywhere = code.map(({ text }) => text).concat(files.filter(({ path }) => /^test\//.test(path)).map(({ text }) => text))
  const known = new Set(commands.flatMap(({ options }) => Object.keys(options)).concat('help', 'version'))
  none(
    find(/(?<=^|\0)--([a-z][a-z-]*)/g, documentSpans).filter(({ groups: [name = ''] }) => !known.has(name) && !has(everywhere, name)),
    'no command and no script has this option',
  )
})

// --- form ---

test('every document has one first heading, on its first line', () => {
  const wrong = documents.flatMap(({ path, text }) => {
    const at = linesOf(text).flatMap(({ line, block }, i) => (block === undefined && /^# /.test(line) ? [i + 1] : []))
    if (at.length === 1 && (at[0] === 1 || path === 'README.md')) return []
    return [{ at: path, text: `first headings on lines ${at.join(', ') || '(none)'}` }]
  })
  none(wrong, 'a document begins with its only first heading')
})

/** A line of one word, or whose first word alone is too long (a link), cannot be broken. */
const canBreak = (line: string) =>
  line
    .trim()
    .split(/\s+/)
    .every(word => word.length < 80) && /\S\s+\S/.test(line.replace(/^\s*(?:[-*]|\d+\.)\s+/, ''))

test('lines of documents have at most 120 columns, but for tables, code blocks and links', () => {
  const wrong = documents.flatMap(({ path, text }) =>
    linesOf(text).flatMap(({ line, block }, i) =>
      block === undefined && [...line].length > COLUMNS_MAX && !line.trimStart().startsWith('|') && canBreak(line)
        ? [{ at: `${path}:${i + 1}`, text: `${[...line].length} columns` }]
        : [],
    ),
  )
  none(wrong, `lines of more than ${COLUMNS_MAX} columns`)
})

/**
 * Issues of another place, notes that are not in the repository, documents under names that they had, and pointers
 * without a place.
 */
const NOWHERE =
  /\bissues? #?\d+\b|\bFACTS\b|\b(?:QEMU|HOUSE)\.md\b|\b[Dd]esign notes?\b|\((?:see )?(?:below|above)\)|\b(?:ARCHITECTURE|THREAT_MODEL|OWNERSHIP|PROTOCOL|TESTING)\b/g
/** Names of documents that are constants in code as well. */
const NOWHERE_DOCUMENT = new RegExp(`${NOWHERE.source}|(?<![\\w.])(?:CONTROL|POLICY)(?![\\w_])`, 'g')

test('no document refers to what nobody has', () => {
  none(find(NOWHERE_DOCUMENT, plain), 'a reference that leads nowhere')
})

/**
 * Processes send, receive and report; people fix. A reader with English as a second language looks these up in vain.
 */
const PERSONAL = /\b(?:says?|said|hears?|heard|tells?|told|mend(?:s|ed)?|of late)\b/gi

test('documents use the terms of the field', () => {
  none(find(PERSONAL, plain), 'write send, receive, report, fix')
})

// --- comments ---

const isClean = ({ path }: SourceFile) =>
  CLEAN_FOLDERS.some(folder => path.startsWith(`${folder}/`)) && /\.(ts|js|c|sh|yaml|service|conf|nft)$/.test(path)
/** Of each line what is comment: the whole line where it begins with one, else what follows the code. */
const comments: SourceFile[] = files.filter(isClean).map(({ path, text }) => {
  const without = withoutComments(text).split('\n')
  const begins = /\.(ts|js|c)$/.test(path) ? /^\s*(?:\/\/|\/?\*)/ : /^\s*#/
  const lines = text.split('\n').map((line, i) => (begins.test(line) || without[i] !== line ? line : ''))
  return { path, text: lines.join('\n') }
})

test('lines of comments have at most 120 columns', () => {
  none(
    find(/^.{121,}$/gu, comments).map(({ at, text }) => ({ at, text: `${[...text].length} columns` })),
    `comments of more than ${COLUMNS_MAX} columns`,
  )
})

test('no comment refers to what nobody has', () => {
  none(find(NOWHERE, comments), 'a reference that leads nowhere')
})

test.run()
