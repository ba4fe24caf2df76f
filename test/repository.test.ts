// What a stranger meets first agrees with the code: npm scripts, Node versions, the workflow, the layout of folders.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { cliReference } from '../cli/reference.ts'
import { commands } from '../cli/table.ts'
import { parseYaml } from '../ops/yaml.ts'
import { root } from './support/source-tree.ts'
import { assert, suite } from './support/suite.ts'

const test = suite('repository')
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const manifest = JSON.parse(read('package.json')) as {
  version: string
  engines: { node: string }
  scripts: Record<string, string>
  optionalDependencies: Record<string, string>
}

test('CONTRIBUTING describes every npm script, and no other', () => {
  const section = read('CONTRIBUTING.md').split('## npm scripts')[1]?.split('\n## ')[0] ?? ''
  const listed = [...section.matchAll(/^\| `([\w:]+)` \| (.+) \|$/gm)]
  assert.equal(
    listed.map(([, name]) => name),
    Object.keys(manifest.scripts),
  )
  for (const [, name, what = ''] of listed) assert.ok(what.length > 10, name)
})

test('engines, .nvmrc, launcher, container and workflow agree on the Node that must be there before', () => {
  const major = Number(/^>=(\d+)$/.exec(manifest.engines.node)?.[1])
  assert.is(Number(read('.nvmrc')), major)
  assert.is(
    (JSON.parse(read('package-lock.json')) as { packages: Record<string, { engines?: { node?: string } }> }).packages['']?.engines?.node,
    manifest.engines.node,
  )
  assert.match(read('.devcontainer/devcontainer.json'), `"image": "node:${major}-bookworm"`)
  assert.match(read('.github/workflows/ci.yml'), `image: node:${major}-bookworm`)
  const runsProduct = Number(/NODE_MAJOR_MIN = (\d+)/.exec(read('bin/launch.js'))?.[1])
  const bundled = Object.entries(manifest.optionalDependencies).filter(([name]) => name.startsWith('node-linux-'))
  assert.is(bundled.length, 2)
  for (const [name, range] of bundled) assert.ok(Number(/^\^(\d+)\./.exec(range)?.[1]) >= runsProduct, name)
  const bundledMajor = /^\^(\d+)\./.exec(bundled[0]?.[1] ?? '')?.[1]
  for (const path of ['CONTRIBUTING.md', 'docs/operate/install.md']) {
    const text = read(path).replace(/\s+/g, ' ')
    for (const version of [`Node ${major}`, `Node ${bundledMajor}`, `is ${runsProduct} or newer`])
      assert.ok(text.includes(version), `${path}: ${version}`)
  }
})

test('the workflow calls what a change must pass, and nothing else', () => {
  type Workflow = { jobs: Record<string, { steps: { run?: string; uses?: string }[] }> }
  const { jobs } = parseYaml(read('.github/workflows/ci.yml'), { what: 'ci.yml' }).value as Workflow
  const steps = Object.values(jobs).flatMap(job => job.steps)
  assert.equal(
    steps.flatMap(({ run }) => (run === undefined ? [] : [run])),
    ['.ci/run'],
  )
})

test('the layout in README names every folder', () => {
  const layout = read('README.md').split('## Layout')[1]?.split('\n## ')[0] ?? ''
  const named = [...layout.matchAll(/^\| (.*?) \|/gm)].flatMap(([, cell = '']) =>
    [...cell.matchAll(/`([\w.-]+)\/`/g)].map(([, name]) => name!),
  )
  const folders = readdirSync(root, { withFileTypes: true })
    .filter(entry => entry.isDirectory() && !['node_modules', '.git', '.cache'].includes(entry.name))
    .map(({ name }) => name)
  assert.equal([...named].sort(), folders.sort())
})

test('docs/reference/cli.md is what the command table gives', () => {
  assert.is(read('docs/reference/cli.md'), cliReference(commands), 'out of date: run node bin/run.js scripts/cli-reference.ts')
})

test('the licence is the last part of README', () => {
  const headings = [...read('README.md').matchAll(/^## (.*)$/gm)].map(([, name]) => name)
  assert.is(headings.at(-1), 'Licence')
})

test('the index of documents has every document', () => {
  const listed = [...read('docs/README.md').matchAll(/\]\(([\w./-]+\.(?:md|json))\)/g)].map(([, path]) => path!)
  const docs = readdirSync(join(root, 'docs'), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && entry.name !== 'README.md')
    .map(entry => join(entry.parentPath, entry.name).slice(join(root, 'docs').length + 1))
  assert.equal(
    docs.filter(path => !listed.includes(path)),
    [],
  )
})

test('the changelog begins with the version of package.json', () => {
  assert.match(read('CHANGELOG.md'), new RegExp(`^## (Unreleased \\()?${manifest.version.replaceAll('.', '\\.')}\\b`, 'm'))
})

test.run()
