// Each hazard of classify.ts by itself, as a story of a few pages.
import { PageMap } from '../../../edge-node/pages/address.ts'
import { BATCH_HEADER_BYTES, batchBufferBytes, readBatchBody, readBatchHeader } from '../../../edge-node/pages/batch.ts'
import { Classifier } from '../../../edge-node/pages/classify.ts'
import { PAGE_BYTES } from '../../../wire/types.ts'
import { assert, suite } from '../../support/suite.ts'
import { pageOf, plainHasher } from './support.ts'

const test = suite('pages: classify')
const [P, X, Y, Q] = [0, 1, 2, 3] as const
const A = 11
const B = 22

/**
 * A classifier, and what left it, in words: `P=11` content, `X<-P` reference, `Y=0` zero, `|` end of a batch, `#`
 * barrier.
 */
function story(batchPages = 8, earlyHolderPausePages = 0) {
  const map = new PageMap([{ id: 0, bytes: 8192 * PAGE_BYTES }])
  const words: string[] = []
  const reasons: string[] = []
  const name = (page: number) => 'PXYQ'[page] ?? String(page)
  const classifier = new Classifier({
    map,
    hasher: plainHasher,
    batchPages,
    earlyHolderPausePages,
    events: {
      takeBuffer: () => new ArrayBuffer(batchBufferBytes(batchPages)),
      batch: ({ buffer, bytes }) => {
        const payload = new Uint8Array(buffer, 0, bytes)
        const { content, pages, zeroRuns, references } = readBatchBody(readBatchHeader(payload), payload.subarray(BATCH_HEADER_BYTES), map)
        for (const [i, page] of pages.entries())
          words.push(`${name(page)}=${new Float64Array(content.slice(i * PAGE_BYTES, i * PAGE_BYTES + 8).buffer)[0]}`)
        for (let i = 0; i < zeroRuns.length; i += 2) for (let j = 0; j < zeroRuns[i + 1]!; j++) words.push(`${name(zeroRuns[i]! + j)}=0`)
        for (let i = 0; i < references.length; i += 2) words.push(`${name(references[i]!)}<-${name(references[i + 1]!)}`)
        words.push('|')
      },
      barrier: (_, reason) => {
        words.push('#')
        if (reason !== 'asked') reasons.push(reason)
      },
    },
  })
  const said = () => {
    classifier.barrier()
    return words.splice(0).join(' ')
  }
  return {
    classifier,
    said,
    reasons,
    page: (page: number, content: number) => classifier.page(page, pageOf(content)),
    zero: (page: number) => classifier.zero(page),
  }
}

test('new content is sent, the same content elsewhere is a reference, a zero is a zero', () => {
  const { page, zero, said } = story()
  page(P, A)
  page(X, A)
  page(Y, B)
  zero(Q)
  assert.is(said(), 'P=11 Y=22 Q=0 X<-P | #')
})

test('a page of zeros that QEMU did not flag is a zero', () => {
  const { page, said } = story()
  page(P, 0)
  assert.is(said(), 'P=0 | #')
})

test('what the target has already is not said again: content, reference or zero, in this interval or a later one', () => {
  const { page, zero, said, classifier } = story()
  const all = () => {
    page(P, A)
    page(X, A)
    zero(Q)
  }
  all()
  all()
  assert.is(said(), 'P=11 Q=0 X<-P | #')
  all()
  assert.is(said(), '#')
  assert.is(classifier.counts.unchanged, 6)
})

test('a page rewritten in the pending batch is sent once, as it was last', () => {
  const { page, zero, said, classifier } = story()
  page(P, A)
  page(P, B)
  zero(X)
  page(X, A)
  page(Y, A)
  zero(Y)
  page(Q, B)
  page(Q, A)
  assert.is(said(), 'P=22 X=11 Y=0 Q<-X | #')
  assert.equal(classifier.counts, { zero: 1, duplicate: 1, fromDisk: 0, content: 2, delta: 0, unchanged: 0, superseded: 4, rewritten: 0 })
})

test('a page rewritten after its batch has gone waits for a barrier', () => {
  const { page, said, reasons } = story(1)
  page(P, A)
  page(P, B)
  assert.is(said(), 'P=11 | # P=22 | #')
  assert.equal(reasons, ['rewritten'])
})

test('a reference rewritten after its batch has gone waits for a barrier', () => {
  const { page, said, reasons } = story(1)
  page(P, A)
  page(X, A)
  page(Y, B)
  page(X, B)
  assert.is(said(), 'P=11 | Y=22 X<-P | # X<-Y | #')
  assert.equal(reasons, ['rewritten'])
})

test('a holder that a reference names waits for a barrier before it is rewritten', () => {
  const { page, said, reasons } = story()
  page(P, A)
  said()
  page(X, A)
  page(P, B)
  assert.is(said(), 'X<-P | # P=22 | #')
  assert.equal(reasons, ['referenced'])
})

test('a holder that a reference names waits for a barrier before it becomes zero', () => {
  const { page, zero, said } = story()
  page(P, A)
  said()
  page(X, A)
  zero(P)
  assert.is(said(), 'X<-P | # P=0 | #')
})

test('a holder in the pending batch that a reference names is not replaced in place', () => {
  const { page, said } = story()
  page(P, A)
  page(X, A)
  page(P, B)
  assert.is(said(), 'P=11 X<-P | # P=22 | #')
})

test('a holder rewritten with the content it has needs nothing, whoever refers to it', () => {
  const { page, said, reasons } = story()
  page(P, A)
  said()
  page(X, A)
  page(P, A)
  page(Y, A)
  assert.is(said(), 'X<-P Y<-P | #')
  assert.equal(reasons, [])
})

test('a holder that becomes a reference itself does so behind a barrier: no chain within an interval', () => {
  const { page, said } = story()
  page(P, A)
  page(Q, B)
  said()
  page(X, A)
  page(P, B)
  assert.is(said(), 'X<-P | # P<-Q | #')
})

test('content whose holder has changed travels anew, though a page that referred to it has it still', () => {
  const { page, said } = story()
  page(P, A)
  page(X, A)
  said()
  page(P, B)
  page(Y, A)
  page(X, A)
  assert.is(said(), 'P=22 Y=11 | #')
})

test('a reference is never named as holder', () => {
  const { page, zero, said } = story()
  page(P, A)
  page(X, A)
  said()
  zero(P)
  page(Y, A)
  page(Q, A)
  assert.is(said(), 'Y=11 P=0 Q<-Y | #')
})

test('a reference in the pending batch that is rewritten is taken back; a barrier for its holder stays due', () => {
  const { page, said } = story()
  page(P, A)
  said()
  page(X, A)
  page(X, B)
  page(P, B)
  assert.is(said(), 'X=22 | # P<-X | #')
})

test('a page that holds zero and gets its old content back is said', () => {
  const { page, zero, said } = story()
  page(P, A)
  said()
  zero(P)
  said()
  page(P, A)
  assert.is(said(), 'P=11 | #')
})

test('a guest cannot have a barrier per page: after one forced by a reference, earlier holders are left alone for a while', () => {
  const { page, said, reasons } = story(8, 100)
  for (let i = 0; i < 40; i++) page(i, 1000 + i)
  said()
  for (let i = 0; i < 40; i++) {
    page(100 + i, 1000 + i)
    page(i, 2000 + i)
  }
  assert.equal(reasons, ['referenced'])
})

test('a holder of the same interval may be named at any time', () => {
  const { page, said, reasons } = story(8, 1_000_000)
  page(P, A)
  page(X, A)
  page(P, B)
  assert.equal(reasons, ['referenced'])
  page(Y, 33)
  page(Q, 33)
  assert.is(said(), 'P=11 X<-P | # P=22 Y=33 Q<-Y | #')
})

test('a batch of nothing but zeros or references is sent when it is full', () => {
  const { page, zero, said, classifier } = story()
  for (let i = 0; i < 2048; i++) zero(i)
  assert.is(classifier.counts.zero, 2048)
  page(4000, A)
  for (let i = 0; i < 1024; i++) page(4001 + i, A)
  assert.is(
    said()
      .split(' ')
      .filter(word => word === '|').length,
    2,
  )
})

test.run()
