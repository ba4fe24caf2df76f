// The content that the small guest's disk starts with: text, incompressible bytes and holes, as a system's disk has.
// Enters: a path. Leaves: a raw file with holes. Always holds: the same bytes in every run.
import { createCipheriv } from 'node:crypto'
import { open } from 'node:fs/promises'
import { MIB } from '../../wire/units.ts'
import { CONTENT_BYTES } from './cases.ts'

const PIECE_BYTES = MIB
/** Of each four pieces. */
const KINDS = ['text', 'random', 'text', 'hole'] as const

export async function writeContent(path: string): Promise<void> {
  const random = createCipheriv('aes-128-ctr', Buffer.alloc(16, 7), Buffer.alloc(16))
  const next = (bytes: number) => random.update(Buffer.alloc(bytes))
  const file = await open(path, 'w')
  try {
    await file.truncate(CONTENT_BYTES)
    for (let at = 0; at < CONTENT_BYTES; at += PIECE_BYTES) {
      const kind = KINDS[(at / PIECE_BYTES) % KINDS.length]
      if (kind === 'hole') continue
      const bytes = kind === 'random' ? next(PIECE_BYTES) : Buffer.from(next(PIECE_BYTES / 2).toString('hex'), 'latin1')
      await file.write(bytes, 0, PIECE_BYTES, at)
    }
  } finally {
    await file.close()
  }
}
