// The project's own files as text, and who imports whom. Enters: the folder. Leaves: files and import edges. Reads
// text, not syntax: biome formats every file alike, so that an import has one form. Always holds: comments count
// neither as imports nor as names of packages.
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

export type SourceFile = { path: string; text: string }
/**
 * `typesOnly`: nothing of it is left when types are stripped. `to` is a path of ours, `node:...` or a package
 * specifier.
 */
export type Import = { from: string; line: number; to: string; typesOnly: boolean }

const LEFT_OUT = new Set(['node_modules', '.cache', '.git'])

/** All text files of the project, with paths from its root. */
export function projectFiles(): SourceFile[] {
  const files: SourceFile[] = []
  const walk = (folder: string) => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      if (LEFT_OUT.has(entry.name)) continue
      const path = join(folder, entry.name)
      if (entry.isDirectory()) walk(path)
      else if (entry.isFile() && !/\.(log|bin|gz|zst|png|node)$/.test(entry.name)) {
        const bytes = readFileSync(path)
        if (!bytes.subarray(0, 4096).includes(0)) files.push({ path: relative(root, path), text: bytes.toString('utf8') })
      }
    }
  }
  walk(root)
  return files.sort((a, b) => (a.path < b.path ? -1 : 1))
}

/**
 * The text with its comments blanked; lines keep their numbers. Quotes within a line are respected well enough for
 * formatted code.
 */
export function withoutComments(text: string): string {
  return text
    .replace(/^\s*\/\*[\s\S]*?\*\//gm, comment => comment.replace(/[^\n]/g, ' '))
    .replace(/^[^\S\n]*\/\/.*$/gm, '')
    .replace(/(?<=[\s;{})\],])\/\/ .*$/gm, '')
}

const isTypesOnly = (clause: string): boolean => {
  if (/^(import|export) type\b/.test(clause)) return true
  const names = /\{([^}]*)\}/.exec(clause)
  if (!names || /^import\s+\w+\s*,/.test(clause)) return false
  const parts = (names[1] ?? '').split(',').map(part => part.trim())
  return parts.filter(Boolean).every(part => part.startsWith('type '))
}

/**
 * All imports of a file: static, dynamic, re-exports, and files named for workers by `new URL('./x.ts',
 * import.meta.url)`.
 */
export function importsOf({ path, text }: SourceFile): Import[] {
  const code = withoutComments(text)
  const found: { at: number; target: string; typesOnly: boolean }[] = []
  for (const match of code.matchAll(/^((?:import|export)\b[^'"`;=]*?\bfrom\s+|import\s+)'([^'\n]+)'/gm))
    found.push({ at: match.index, target: match[2] ?? '', typesOnly: isTypesOnly(match[1] ?? '') })
  for (const match of code.matchAll(/\bimport\(\s*'([^'\n]+)'|new URL\(\s*'(\.[^'\n]+\.[jt]s)',\s*import\.meta\.url/g))
    found.push({ at: match.index, target: match[1] ?? match[2] ?? '', typesOnly: false })
  return found.map(({ at, target, typesOnly }) => ({
    from: path,
    line: code.slice(0, at).split('\n').length,
    to: target.startsWith('.') ? join(dirname(path), target) : target,
    typesOnly,
  }))
}

/** Every file that is loaded when `starts` are, themselves included; `stop` files are not looked into. */
export function closure(starts: string[], imports: Import[], stop: ReadonlySet<string> = new Set()): Map<string, string> {
  const cameFrom = new Map(starts.map(path => [path, '']))
  const queue = [...starts]
  for (let path = queue.shift(); path !== undefined; path = queue.shift()) {
    if (stop.has(path)) continue
    for (const { from, to, typesOnly } of imports) {
      if (from !== path || typesOnly || cameFrom.has(to)) continue
      cameFrom.set(to, path)
      queue.push(to)
    }
  }
  return cameFrom
}

/** How a file of a closure came in: `a -> b -> c`. */
export function trail(cameFrom: Map<string, string>, path: string): string {
  const steps = [path]
  for (let step = cameFrom.get(path); step; step = cameFrom.get(step)) steps.unshift(step)
  return steps.join(' -> ')
}

/** Import cycles (of values, not types), each once, as a list of paths. */
export function cycles(files: string[], imports: Import[]): string[][] {
  const next = new Map(files.map(path => [path, imports.filter(({ from, typesOnly }) => from === path && !typesOnly).map(({ to }) => to)]))
  const state = new Map<string, 'open' | 'done'>()
  const found: string[][] = []
  const visit = (path: string, stack: string[]) => {
    state.set(path, 'open')
    for (const to of next.get(path) ?? []) {
      if (state.get(to) === 'open') found.push([...stack.slice(stack.indexOf(to)), to])
      else if (!state.has(to) && next.has(to)) visit(to, [...stack, to])
    }
    state.set(path, 'done')
  }
  for (const path of files) if (!state.has(path)) visit(path, [path])
  return found
}

/** A name that a file exports. */
type Export = { path: string; line: number; name: string }

/** All names that a file exports by declaration or in braces; `export *` has no names. */
export function exportsOf({ path, text }: SourceFile): Export[] {
  const code = withoutComments(text)
  const found: { at: number; name: string }[] = []
  const declared = /^export (?:async )?(?:function\*?|class|const|let|type|interface|enum) (\w+)/gm
  for (const match of code.matchAll(declared)) found.push({ at: match.index, name: match[1]! })
  for (const match of code.matchAll(/^export (?:type )?\{([^}]*)\}/gm))
    for (const { as } of namesIn(match[1]!)) found.push({ at: match.index, name: as })
  return found.map(({ at, name }) => ({ path, line: code.slice(0, at).split('\n').length, name }))
}

/** `a, type B as C` as names and their new names. */
function namesIn(list: string): { name: string; as: string }[] {
  const parts = list.split(',').map(part => part.trim().replace(/^type /, ''))
  return parts.filter(Boolean).map(part => {
    const [name = '', as = name] = part.split(' as ')
    return { name, as }
  })
}

/**
 * The names that a file imports from other files of ours, as `path name`. A file that imports another one as a whole
 * (`import()`, `import * as`, `export *`) counts as a user of each name that stands anywhere in its text.
 */
export function namesImported({ path, text }: SourceFile): Set<string> {
  const code = withoutComments(text)
  const found = new Set<string>()
  const resolve = (target: string) => join(dirname(path), target.replace(/\?.*$/, ''))
  for (const match of code.matchAll(/^(?:import|export) ([^'"`;=]*?)\bfrom '(\.[^'\n]+)'/gm)) {
    const list = /\{([^}]*)\}/.exec(match[1]!)?.[1] ?? ''
    for (const { name } of namesIn(list)) found.add(`${resolve(match[2]!)} ${name}`)
  }
  const whole = /^(?:import|export) \*[^'"`;=]*?\bfrom '(\.[^'\n]+)'|\bimport\(\s*['`](\.[^'`\n]+?)['`]/gm
  const words = new Set(code.match(/\w+/g))
  for (const match of code.matchAll(whole)) for (const word of words) found.add(`${resolve(match[1] ?? match[2]!)} ${word}`)
  return found
}
