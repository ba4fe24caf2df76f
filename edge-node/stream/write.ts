// The tokens of a QEMU migration stream, and the bytes they stand for: the exact inverse of tokenize.ts,
// `write(tokenize(x))` equals x.
// Enters: tokens. Leaves: bytes. For tests and tools; the migration itself uses parse.ts, which never builds tokens.
import { be16, be32, be64, concat, counted, EOS_RECORD, nameBytes, pageHead, RAM_FLAG, SECTION, STREAM_MAGIC } from './layout.ts'

/** An entry of the MEM_SIZE list. Names have one character per byte. */
export type BlockEntry = { name: string; usedBytes: number; pageBytes?: number; address?: bigint }

/**
 * One part of the stream. A page without `name` continues the block of the page before it (CONTINUE). `opaque` comes
 * last and holds the rest.
 */
export type Token =
  | { kind: 'magic'; version: number }
  | { kind: 'configuration'; machine: string }
  | { kind: 'subsection'; name: string; version: number; fields: Uint8Array }
  | { kind: 'command'; command: number; payload: Uint8Array }
  | { kind: 'start'; id: number; name: string; instance: number; version: number }
  | { kind: 'part' | 'end' | 'footer'; id: number }
  | { kind: 'blocks'; list: BlockEntry[] }
  | { kind: 'page'; name?: string; offset: number; bytes: Uint8Array }
  | { kind: 'zero'; name?: string; offset: number }
  | { kind: 'eos' }
  | { kind: 'opaque'; bytes: Uint8Array }

/** The bytes of these tokens, one after the other. Nothing is checked: a test may write a wrong stream. */
export const write = (tokens: readonly Token[]): Uint8Array => concat(tokens.map(writeToken))

export function writeToken(token: Token): Uint8Array {
  switch (token.kind) {
    case 'magic':
      return concat([be32(STREAM_MAGIC), be32(token.version)])
    case 'configuration':
      return concat([type(SECTION.configuration), be32(token.machine.length), nameBytes(token.machine)])
    case 'subsection':
      return concat([type(SECTION.subsection), counted(token.name), be32(token.version), token.fields])
    case 'command':
      return concat([type(SECTION.command), be16(token.command), be16(token.payload.length), token.payload])
    case 'start':
      return concat([type(SECTION.start), be32(token.id), counted(token.name), be32(token.instance), be32(token.version)])
    case 'part':
    case 'end':
    case 'footer':
      return concat([type(SECTION[token.kind]), be32(token.id)])
    case 'blocks':
      return writeBlocks(token.list)
    case 'page':
      return concat([head(token.offset, RAM_FLAG.page, token.name), token.bytes])
    case 'zero':
      return concat([head(token.offset, RAM_FLAG.zero, token.name), Uint8Array.of(0)])
    case 'eos':
      return EOS_RECORD
    case 'opaque':
      return token.bytes
  }
}

const type = (value: number): Uint8Array => Uint8Array.of(value)

const head = (offset: number, flag: number, name: string | undefined): Uint8Array =>
  name === undefined ? pageHead(offset, flag | RAM_FLAG.continue, '') : pageHead(offset, flag, name)

function writeBlocks(list: readonly BlockEntry[]): Uint8Array {
  const total = list.reduce((sum, block) => sum + block.usedBytes, 0)
  const parts = [be64(total + RAM_FLAG.memSize)]
  for (const block of list) {
    parts.push(counted(block.name), be64(block.usedBytes))
    if (block.pageBytes !== undefined) parts.push(be64(block.pageBytes))
    if (block.address !== undefined) parts.push(be32(Number(block.address >> 32n)), be32(Number(block.address & 0xffff_ffffn)))
  }
  return concat(parts)
}
