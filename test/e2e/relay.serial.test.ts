// The relay forwards nothing that it could read: all that it forwards in a migration is captured, and no 16 bytes in a
// row of the guest's known pages, nor of the VM's specification, are in it. Compression is off, so that plaintext would
// travel as it is. The same search finds one such piece where it is put.

import { deflateRawSync } from 'node:zlib'
import { specToYaml } from '../../edge-node/vm/spec.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { MIB } from '../../wire/units.ts'
import { labMissing, openLab } from '../support/lab.ts'
import { bootGuest, readMemory } from '../support/lab-guest.ts'
import { createSearch } from '../support/search.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/relay', { ms: 240_000 })
const skip = labMissing()

/**
 * The guest program writes this at the head of each page of its own that is not zero or a duplicate (guest/guest.c,
 * MAGIC).
 */
const PAGE_MARK = Buffer.from('Godwitp1', 'latin1')
const NOTE = 'this-line-is-known-to-the-two-sites-and-to-nobody-between-them'
const KNOWN_PAGES = 2_000

type Capture = Map<string, { sessionId: string; index: number; direction: string; chunks: Buffer[]; bytes: number }>

/** The guest's own pages, recognised by their mark. */
function ownPages(memory: Buffer): Buffer[] {
  const pages: Buffer[] = []
  for (let at = 0; at < memory.length && pages.length < KNOWN_PAGES; at += PAGE_BYTES)
    if (memory.compare(PAGE_MARK, 0, PAGE_MARK.length, at, at + PAGE_MARK.length) === 0) pages.push(memory.subarray(at, at + PAGE_BYTES))
  return pages
}

test(
  'of all that the relay forwards, in both directions, no 16 bytes are from a known page or from the specification; planted, they are found',
  async () => {
    const capture: Capture = new Map()
    await using lab = await openLab({
      tap(sessionId, index, direction, bytes) {
        const key = `${index} ${direction}`
        const stream = capture.get(key) ?? { sessionId, index, direction, chunks: [], bytes: 0 }
        stream.chunks.push(Buffer.from(bytes))
        stream.bytes += bytes.length
        capture.set(key, stream)
      },
    })
    // Nothing rewrites memory: what is in it at the end is what was sent.
    const still = { dirtyBytesPerSecond: 0, mix: [0, 0, 0, 100], fillBytes: 24 * MIB, memoryMiB: 96 } as const
    using vm = await bootGuest(lab, 'a', { ...still, seed: 77, spec: { compression: 'off' }, appendMore: `note=${NOTE}` })
    const spec = specToYaml(lab.site('a').node.registry.spec(vm.name))
    let memory: Buffer | undefined
    lab.site('b').onLoaded = async target => {
      memory = await readMemory(target)
    }
    const { outcome, report } = await lab.migrate({ vm: vm.name, to: 'b' })
    assert.is(outcome, 'completed', lab.logTail())
    await vm.assertSound()

    // The capture is whole: control, skeleton and page streams, and at least all bytes of raw pages.
    const streams = [...capture.values()].sort((a, b) => a.index - b.index)
    assert.equal(
      streams.filter(({ direction }) => direction === 'source-to-target').map(({ index }) => index),
      [0, 1, 2, 3, 4, 5],
    )
    assert.ok(
      streams.some(({ direction, bytes }) => direction === 'target-to-source' && bytes > 1000),
      'acknowledgements, LOADED and RUNNING went back',
    )
    const total = streams.reduce((sum, { bytes }) => sum + bytes, 0)
    assert.ok(report!.pagesCompressed === 0 && report!.bytesRaw > 24 * MIB && total > report!.bytesRaw)

    const pages = ownPages(memory!)
    assert.is(pages.length, KNOWN_PAGES)
    assert.ok(spec.includes(NOTE))
    const search = createSearch([...pages, Buffer.from(spec)])
    for (const { chunks, index, direction } of streams) assert.equal(search(chunks), [], `stream ${index} ${direction}`)

    // Controls: in plain bytes every page is found; one piece of each kind, planted across chunks of the real capture,
    // is found.
    assert.ok(search([Buffer.from('abc'), ...pages.flatMap(page => [page, Buffer.alloc(5)])]).length >= KNOWN_PAGES)
    const busiest = streams.reduce((most, stream) => (stream.bytes > most.bytes ? stream : most))
    for (const piece of [pages[1234]!.subarray(1003, 1019), Buffer.from(NOTE.slice(7, 23))]) {
      const planted = [...busiest.chunks]
      const middle = planted.length >> 1
      planted.splice(middle, 0, piece.subarray(0, 5), piece.subarray(5))
      assert.equal(
        search(planted).map(({ text }) => text),
        [piece.toString('latin1')],
      )
    }
    // Nor has it any structure that a compressor could use.
    const sample = Buffer.concat(busiest.chunks).subarray(0, 4 * MIB)
    const ratio = deflateRawSync(sample, { level: 6 }).length / sample.length
    assert.ok(ratio > 0.999, `the capture compresses to ${ratio}`)
    console.log(
      `  ${total} bytes captured in ${streams.length} directions of streams, ${pages.length} pages searched for, deflate ratio ${ratio.toFixed(4)}`,
    )
  },
  { skip },
)

test.run()
