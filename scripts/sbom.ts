// npm run sbom [-- --out FILE]: the bill of materials of package-lock.json as CycloneDX 1.5 JSON. Enters: package.json
// and package-lock.json. Leaves: the document on stdout or in FILE; the same bytes for the same lock file. Always
// holds: it contains every package of the lock file, with its hash; if a hash is missing, nothing is written and the
// exit code is 1. (npm sbom would do, but the npm of Debian 12 does not have it.)
import { readFileSync, writeFileSync } from 'node:fs'

type LockEntry = {
  version?: string
  integrity?: string
  license?: string
  dev?: boolean
  optional?: boolean
  dependencies?: Record<string, string>
  optionalDependencies?: Record<string, string>
  peerDependencies?: Record<string, string>
}
export type Lock = { name: string; version: string; packages: Record<string, LockEntry> }
type Component = { 'bom-ref': string; purl: string; hashes: { alg: string; content: string }[]; [field: string]: unknown }
type Sbom = { components: Component[]; dependencies: { ref: string; dependsOn: string[] }[]; [field: string]: unknown }

const ALGORITHMS: Record<string, string> = { sha256: 'SHA-256', sha384: 'SHA-384', sha512: 'SHA-512' }

const nameOf = (path: string): string => path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length)
const refOf = (path: string, { version }: LockEntry): string => `${nameOf(path)}@${version}`
const purlOf = (name: string, version: string | undefined): string => `pkg:npm/${name.replace(/^@/, '%40')}@${version}`

/** Packages of the lock file without a hash, which npm would unpack unchecked. */
export const unhashed = ({ packages }: Lock): string[] =>
  Object.entries(packages).flatMap(([path, { integrity }]) => (path === '' || /^sha(256|384|512)-/.test(integrity ?? '') ? [] : [path]))

/** Packages of the lock file that an SBOM lacks, or has with another hash. */
export function lacking(sbom: Sbom, { packages }: Lock): string[] {
  const known = new Map(sbom.components.map(component => [component['bom-ref'], JSON.stringify(component.hashes)]))
  return Object.entries(packages).flatMap(([path, entry]) =>
    path === '' || known.get(refOf(path, entry)) === JSON.stringify(hashesOf(entry)) ? [] : [path],
  )
}

export function sbomOf(lock: Lock): Sbom {
  const entries = Object.entries(lock.packages).filter(([path]) => path !== '')
  const components = new Map(entries.map(([path, entry]) => [refOf(path, entry), componentOf(path, entry)]))
  const all = Object.entries(lock.packages).map(([path, entry]) => ({
    ref: path === '' ? rootRef(lock) : refOf(path, entry),
    dependsOn: dependenciesOf(path, entry, lock),
  }))
  const dependencies = new Map<string, Set<string>>()
  for (const { ref, dependsOn } of all) dependencies.set(ref, new Set([...(dependencies.get(ref) ?? []), ...dependsOn]))
  const { license } = lock.packages[''] ?? {}
  const root = { type: 'application', name: lock.name, version: lock.version, 'bom-ref': rootRef(lock), ...licensesOf(license) }
  return {
    $schema: 'http://cyclonedx.org/schema/bom-1.5.schema.json',
    bomFormat: 'CycloneDX',
    specVersion: '1.5',
    version: 1,
    metadata: { lifecycles: [{ phase: 'pre-build' }], component: root },
    components: [...components.values()].sort((a, b) => (a['bom-ref'] < b['bom-ref'] ? -1 : 1)),
    dependencies: [...dependencies].map(([ref, on]) => ({ ref, dependsOn: [...on].sort() })).sort((a, b) => (a.ref < b.ref ? -1 : 1)),
  }
}

const rootRef = ({ name, version }: Lock): string => `${name}@${version}`

function componentOf(path: string, entry: LockEntry): Component {
  const name = nameOf(path)
  return {
    type: 'library',
    'bom-ref': refOf(path, entry),
    name,
    version: entry.version,
    scope: entry.dev ? 'excluded' : entry.optional ? 'optional' : 'required',
    purl: purlOf(name, entry.version),
    hashes: hashesOf(entry),
    ...licensesOf(entry.license),
  }
}

const hashesOf = ({ integrity = '' }: LockEntry): { alg: string; content: string }[] =>
  integrity.split(' ').flatMap(text => {
    const [algorithm = '', base64 = ''] = text.split(/-(.*)/s)
    const alg = ALGORITHMS[algorithm]
    return alg ? [{ alg, content: Buffer.from(base64, 'base64').toString('hex') }] : []
  })

/** One SPDX id, or an expression of several. */
function licensesOf(license: string | undefined): object {
  if (license === undefined) return {}
  return { licenses: [/[ ()]/.test(license) ? { expression: license } : { license: { id: license } }] }
}

/** Path of each dependency of the package at `path`: in the nearest node_modules above it. */
function dependenciesOf(path: string, entry: LockEntry, { packages }: Lock): string[] {
  const names = { ...entry.dependencies, ...entry.optionalDependencies, ...entry.peerDependencies, ...(path === '' ? devOf(entry) : {}) }
  return Object.keys(names).flatMap(name => {
    for (let at = path; ; at = at.slice(0, Math.max(0, at.lastIndexOf('node_modules/') - 1))) {
      const candidate = `${at === '' ? '' : `${at}/`}node_modules/${name}`
      const found = packages[candidate]
      if (found) return [refOf(candidate, found)]
      if (at === '') return []
    }
  })
}

const devOf = (entry: LockEntry): Record<string, string> => (entry as { devDependencies?: Record<string, string> }).devDependencies ?? {}

function main(words: string[]): number {
  const [flag, out, ...more] = words
  if (flag !== undefined && (flag !== '--out' || out === undefined || more.length > 0)) {
    console.error('usage: npm run sbom [-- --out FILE]')
    return 2
  }
  const lock = JSON.parse(readFileSync(new URL('../package-lock.json', import.meta.url), 'utf8')) as Lock
  const sbom = sbomOf(lock)
  const lack = [...new Set([...unhashed(lock), ...lacking(sbom, lock)])]
  if (lack.length > 0 || sbom.components.length === 0) {
    console.error(`the bill of materials is incomplete, packages without a hash: ${lack.join(', ') || 'no package found'}`)
    return 1
  }
  const text = `${JSON.stringify(sbom, null, 2)}\n`
  if (out === undefined) process.stdout.write(text)
  else writeFileSync(out, text)
  return 0
}

if (import.meta.main) process.exitCode = main(process.argv.slice(2))
