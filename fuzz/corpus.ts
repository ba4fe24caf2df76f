// The corpus on disk: fuzz/corpus/<target>.txt, one input in hex per line, lines with # are comments. A few kB for each
// target: inputs that reached new code.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const INPUT_BYTES_MAX = 1024
const FILE_BYTES_MAX = 8 * 1024

const fileOf = (target: string): string => fileURLToPath(new URL(`./corpus/${target}.txt`, import.meta.url))

export function readCorpus(target: string): Uint8Array[] {
  const file = fileOf(target)
  if (!existsSync(file)) return []
  const lines = readFileSync(file, 'utf8').split('\n')
  return lines.filter(line => line !== '' && !line.startsWith('#')).map(line => new Uint8Array(Buffer.from(line, 'hex')))
}

/** Stores the first inputs that fit. */
export function writeCorpus(target: string, inputs: readonly Uint8Array[]): number {
  const lines: string[] = []
  let bytes = 0
  for (const input of inputs) {
    const line = Buffer.from(input).toString('hex')
    if (input.length === 0 || input.length > INPUT_BYTES_MAX || bytes + line.length + 1 > FILE_BYTES_MAX || lines.includes(line)) continue
    lines.push(line)
    bytes += line.length + 1
  }
  writeFileSync(fileOf(target), `${lines.join('\n')}\n`)
  return lines.length
}
