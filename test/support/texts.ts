// What the checks of texts share: the project's files by kind, and places where a pattern is found. Enters: files of
// the project. Leaves: prose, code, code spans of documents, quoted texts of code, and found places with file and line.
// Reads files only.
import { projectFiles, type SourceFile } from './source-tree.ts'
import { assert } from './suite.ts'

const CODE_FOLDERS = 'bench|bin|cli|crypto|edge-node|fuzz|gateway|identity|mqtt|ops|planning|scripts|sim-network|transport|wire'

export const files = projectFiles()
/** README.md, CONTRIBUTING.md and the like, and all of docs/. */
const isDocument = ({ path }: SourceFile): boolean => /^([A-Z_]+|docs\/.*)\.md$/.test(path)
const isProse = (file: SourceFile) => isDocument(file) || /^(packaging|examples)\//.test(file.path)
const isCode = ({ path }: SourceFile) => new RegExp(`^(${CODE_FOLDERS})/.*\\.[jt]s$`).test(path)

export const documents = files.filter(isDocument)
export const prose = files.filter(isProse)
export const code = files.filter(isCode)

/** `groups` are those of the pattern. */
export type Found = { at: string; text: string; groups: (string | undefined)[] }

/** All places where `pattern` is found, line by line. */
export function find(pattern: RegExp, among: SourceFile[]): Found[] {
  return among.flatMap(({ path, text }) =>
    text
      .split('\n')
      .flatMap((line, i) => [...line.matchAll(pattern)].map(([whole, ...groups]) => ({ at: `${path}:${i + 1}`, text: whole, groups }))),
  )
}

/** Fails with one line for each place. */
export function none(wrong: Pick<Found, 'at' | 'text'>[], what: string): void {
  assert.ok(wrong.length === 0, `${what}:\n${wrong.map(({ at, text }) => `      ${at}: ${text}`).join('\n')}`)
}

/** Quoted texts of the code, each on the line where it stands: hints, messages and help are among them. */
export const quoted: SourceFile[] = code.map(({ path, text }) => ({
  path,
  text: text
    .split('\n')
    .map(line =>
      [...line.matchAll(/'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`/g)]
        .map(m => (m[1] ?? m[2] ?? m[3] ?? '').replace(/\$\{[^}]*\}/g, ''))
        .join('\n\0'),
    )
    .map(line => line.replaceAll('\n', ' '))
    .join('\n'),
}))

/** A document's lines, each with whether it stands in a fenced code block, and the block's language. */
export function linesOf(text: string): { line: string; block: string | undefined }[] {
  let block: string | undefined
  return text.split('\n').map(line => {
    const fence = /^\s*```(\w*)/.exec(line)
    if (!fence) return { line, block }
    const inside = block
    block = inside === undefined ? fence[1] || 'text' : undefined
    return { line: '', block: inside ?? block }
  })
}

/**
 * Code spans and code blocks of documents; of other prose everything but comments. The rest is prose, in which `godwit`
 * is a name.
 */
export const spans: SourceFile[] = prose.map(({ path, text }) => {
  if (!path.endsWith('.md')) return { path, text: text.replaceAll('#', '\0') }
  const lines = linesOf(text).map(({ line, block }) =>
    block === undefined ? [...line.matchAll(/`([^`]*)`/g)].map(([, span]) => span).join('\0') : line.replaceAll('#', '\0'),
  )
  return { path, text: lines.join('\n') }
})
