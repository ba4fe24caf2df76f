// What a parser should make of a stream, worked out from its tokens, and what a stream does to memory. Slow and plain,
// to check the fast parser by.
import { concat } from '../../../edge-node/stream/layout.ts'
import { createParser } from '../../../edge-node/stream/parse.ts'
import { type Token, write, writeToken } from '../../../edge-node/stream/write.ts'

type Captures = (name: string) => boolean
/** `pages`: block, offset, and the page as latin1 text ('' for zeros), in order. */
type Outcome = { skeleton: Uint8Array; pages: [string, number, string][]; end: 'devices' | 'opaque' }

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1')

/** The parser's outcome for a stream in these pieces. Throws what the parser throws. */
export function parsePieces(pieces: Iterable<Uint8Array>, captures: Captures): Outcome & { reason: string | undefined } {
  const skeleton: Uint8Array[] = []
  const outcome: Outcome = { skeleton: new Uint8Array(0), pages: [], end: 'devices' }
  let ended = false
  const parser = createParser(
    {
      skeleton: bytes => skeleton.push(bytes.slice()),
      page: (block, offset, bytes) => outcome.pages.push([block.name, offset, text(bytes)]),
      zero: (block, offset) => outcome.pages.push([block.name, offset, '']),
      blocks: () => {},
      ramEnd: () => {
        ended = true
      },
      opaque: () => {
        outcome.end = 'opaque'
      },
    },
    { captures },
  )
  for (const piece of pieces) parser.push(piece)
  parser.end()
  if (ended === (outcome.end === 'opaque')) throw new Error('ramEnd and opaque exclude each other')
  return { ...outcome, skeleton: concat(skeleton), reason: parser.opaqueReason }
}

/** Pieces of `size` bytes each. */
export function* cut(bytes: Uint8Array, size: number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

/**
 * The same from the tokens: captured pages out, other pages named, the last captured page once more before an opaque
 * part that RAM may follow in.
 */
export function expected(tokens: readonly Token[], captures: Captures): Outcome {
  const skeleton: Token[] = []
  const pages: Outcome['pages'] = []
  let block = ''
  let last: Token | undefined
  let inBody = false
  let ramEnds = false
  let end: Outcome['end'] = 'opaque'
  for (const token of tokens) {
    if (token.kind === 'start' || token.kind === 'part' || token.kind === 'end') inBody = true
    if (token.kind === 'end') ramEnds = true
    if (token.kind === 'eos') {
      inBody = false
      if (ramEnds) end = 'devices'
    }
    if (token.kind === 'page' || token.kind === 'zero') {
      block = token.name ?? block
      const named = { ...token, name: block }
      last = captures(block) ? named : undefined
      if (last === undefined) skeleton.push(named)
      else pages.push([block, token.offset, token.kind === 'page' ? text(token.bytes) : ''])
    } else if (token.kind === 'opaque' && end === 'opaque' && last !== undefined) {
      skeleton.push(...(inBody ? [last] : reminder(tokens, last)), token)
    } else skeleton.push(token)
  }
  return { skeleton: write(skeleton), pages, end }
}

function reminder(tokens: readonly Token[], last: Token): Token[] {
  const id = tokens.find(token => token.kind === 'start')!.id
  const footer: Token[] = tokens.some(token => token.kind === 'footer') ? [{ kind: 'footer', id }] : []
  return [{ kind: 'part', id }, last, { kind: 'eos' }, ...footer]
}

/**
 * Memory after a QEMU has loaded the pages in these tokens: `block:offset` -> page. CONTINUE is read as QEMU reads it.
 */
export function load(tokens: readonly Token[], memory: Map<string, string> = new Map()): Map<string, string> {
  let block = ''
  for (const token of tokens) {
    if (token.kind !== 'page' && token.kind !== 'zero') continue
    block = token.name ?? block
    if (block === '') throw new Error('a page continues no block')
    memory.set(`${block}:${token.offset}`, token.kind === 'page' ? text(token.bytes) : '')
  }
  return memory
}

/** Where in the bytes each token begins. */
export function positions(tokens: readonly Token[]): number[] {
  let at = 0
  return tokens.map(token => {
    const start = at
    at += writeToken(token).length
    return start
  })
}
