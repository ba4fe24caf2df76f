// What npm brings: every package is named with its hash, comes by npm ci alone, and is in the bill of materials.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Lock, lacking, sbomOf, unhashed } from '../../scripts/sbom.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('supply chain', { ms: 60_000 })
const root = fileURLToPath(new URL('../..', import.meta.url))
const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as Lock
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Record<string, Record<string, string> | undefined>

test('every package of the lock file has a hash, whatever platform it is for', () => {
  assert.ok(Object.keys(lock.packages).length > 100)
  assert.equal(unhashed(lock), [])
  const damaged = structuredClone(lock)
  damaged.packages['node_modules/zod']!.integrity = 'sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk='
  assert.equal(unhashed(damaged), ['node_modules/zod'], 'a weak hash is none')
})

test('package.json asks for nothing that the lock file does not hold', () => {
  for (const kind of ['dependencies', 'devDependencies', 'optionalDependencies']) {
    assert.ok(Object.keys(manifest[kind] ?? {}).length > 0, kind)
    for (const name of Object.keys(manifest[kind] ?? {})) assert.ok(lock.packages[`node_modules/${name}`], `${kind}: ${name}`)
  }
})

test('setup, launcher and CI install by npm ci only', async () => {
  const scripts = (await readdir(join(root, 'scripts'), { recursive: true }))
    .filter(name => /\.(js|ts)$/.test(name))
    .map(name => join('scripts', name))
  assert.ok(scripts.length > 4)
  for (const path of [
    ...scripts.filter(name => !name.endsWith('debian.js')),
    'bin/launch.js',
    '.ci/run',
    'package.json',
    'cli/doctor/doctor.ts',
  ]) {
    const text = await readFile(join(root, path), 'utf8')
    assert.not.match(text, /npm install\b|['"](install|i|add|update)['"]|npx /, path)
  }
  assert.match(await readFile(join(root, 'scripts/setup/npm.js'), 'utf8'), "'ci'")
})

test('the bill of materials has every package with its hash, and says so when one is missing', () => {
  const run = spawnSync(process.execPath, [join(root, 'scripts/sbom.ts')], { encoding: 'utf8', timeout: 30_000 })
  assert.is(run.status, 0, run.stderr)
  const sbom = JSON.parse(run.stdout) as ReturnType<typeof sbomOf>
  assert.equal([sbom['bomFormat'], sbom['specVersion']], ['CycloneDX', '1.5'])
  assert.equal(lacking(sbom, lock), [])
  assert.is(run.stdout, `${JSON.stringify(sbomOf(lock), null, 2)}\n`, 'the same lock file, the same bytes')
  const zod = sbom.components.find(({ purl }) => purl.startsWith('pkg:npm/zod@'))
  assert.is(zod?.hashes[0]?.alg, 'SHA-512')
  assert.is(zod?.hashes[0]?.content.length, 128)
  const less = { ...sbom, components: sbom.components.filter(component => component !== zod) }
  assert.equal(lacking(less, lock), ['node_modules/zod'])
  const refs = new Set([...sbom.components.map(component => component['bom-ref']), sbom.dependencies[0]?.ref])
  for (const { ref, dependsOn } of sbom.dependencies) for (const on of dependsOn) assert.ok(refs.has(on), `${ref} -> ${on}`)
})

/** npm 10 and later have a command for it: both must name the same packages. */
const own = spawnSync('npm', ['sbom', '--package-lock-only', '--sbom-format', 'cyclonedx'], {
  cwd: root,
  encoding: 'utf8',
  timeout: 60_000,
})
test(
  "it names the same packages and hashes as npm's own",
  () => {
    const theirs = JSON.parse(own.stdout) as ReturnType<typeof sbomOf>
    const facts = ({ components }: ReturnType<typeof sbomOf>) =>
      [...new Set(components.map(({ purl, hashes }) => `${purl.replace('%40', '@')} ${hashes?.[0]?.content}`))].sort()
    assert.equal(facts(sbomOf(lock)), facts(theirs))
  },
  { skip: own.status === 0 ? undefined : 'this npm has no npm sbom' },
)

test.run()
