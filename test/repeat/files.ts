// Which test files depend on more than their code: those that use real QEMUs, processes, sockets or clocks. Enters: the
// files' sources. Leaves: those to repeat. The rule: *.serial.test.ts; and whatever imports one of IMPORTS or uses a
// timer, itself or in a helper of test/ that it imports (at any depth).
import { existsSync, globSync, readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'

const IMPORTS = [
  /^node:(net|dgram|http|http2|https|tls|child_process|worker_threads|timers\/promises)$/,
  /\/transport\/(quic|tls|webtransport|bulk|warm-up)[^/]*\.ts$/,
  /\/ops\/(deadline|http|http-client)\.ts$/,
  /\/(gateway\/gateway|edge-node\/agent)\.ts$/,
  /\/edge-node\/(qmp|vm)\//,
]
const CLOCKS = /\b(setTimeout|setInterval|performance\.now)\b/
/** Its timer is only each test's deadline. */
const NOT_A_CLOCK = /\/support\/suite\.ts$/

const importsOf = (source: string): string[] =>
  [...source.matchAll(/(?:\bfrom|\bimport)\s*\(?\s*'([^']+)'/g)].map(([, name]) => name!).filter(name => !name.endsWith('.js'))

/** Whether a file, or a helper below `root` that it imports, depends on real time, processes or sockets. */
function isReal(file: string, root: string, seen: Map<string, boolean>): boolean {
  const known = seen.get(file)
  if (known !== undefined) return known
  seen.set(file, false)
  if (NOT_A_CLOCK.test(file) || !existsSync(file)) return false
  const source = readFileSync(file, 'utf8')
  const names = importsOf(source)
  const paths = names.filter(name => name.startsWith('.')).map(name => resolve(dirname(file), name))
  const answer =
    CLOCKS.test(source) ||
    [...names, ...paths].some(name => IMPORTS.some(pattern => pattern.test(name))) ||
    paths.some(path => path.startsWith(`${root}/`) && isReal(path, root, seen))
  seen.set(file, answer)
  return answer
}

/** Paths below `root` (a test folder), in order. */
export function realFiles(root: string): string[] {
  const seen = new Map<string, boolean>()
  return globSync('**/*.test.ts', { cwd: root })
    .sort()
    .filter(name => name.endsWith('.serial.test.ts') || isReal(join(root, name), root, seen))
}
