// The archive writer, read back by a reader written from the kernel's description of the format.
import { type CpioEntry, writeCpio } from '../../guest/cpio.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('cpio')

type Member = { path: string; mode: number; inode: number; device: [number, number]; content: string }

function readCpio(archive: Uint8Array): Member[] {
  const members: Member[] = []
  const text = Buffer.from(archive).toString('latin1')
  for (let at = 0; at < text.length; ) {
    assert.is(text.slice(at, at + 6), '070701')
    const fields = Array.from({ length: 13 }, (_, i) => Number.parseInt(text.slice(at + 6 + i * 8, at + 14 + i * 8), 16))
    const [inode = 0, mode = 0, size = 0, major = 0, minor = 0, nameSize = 0] = [0, 1, 6, 9, 10, 11].map(i => fields[i])
    const contentAt = Math.ceil((at + 110 + nameSize) / 4) * 4
    assert.is(text[at + 110 + nameSize - 1], '\0')
    members.push({
      path: text.slice(at + 110, at + 110 + nameSize - 1),
      ...{ inode, mode, device: [major, minor], content: text.slice(contentAt, contentAt + size) },
    })
    at = Math.ceil((contentAt + size) / 4) * 4
  }
  return members
}

test('every kind of entry comes back as it went in', () => {
  const entries: CpioEntry[] = [
    { path: 'dev', kind: 'folder' },
    { path: 'dev/console', kind: 'device', major: 5, minor: 1 },
    { path: 'init', kind: 'file', executable: true, content: Buffer.from('#!/bin/sh') },
    { path: 'sh', kind: 'link', target: 'busybox' },
    { path: 'empty', kind: 'file', content: new Uint8Array() },
  ]
  assert.equal(
    readCpio(writeCpio(entries)).map(({ path, mode, device, content }) => [path, mode.toString(8), device, content]),
    [
      ['dev', '40755', [0, 0], ''],
      ['dev/console', '20600', [5, 1], ''],
      ['init', '100755', [0, 0], '#!/bin/sh'],
      ['sh', '120777', [0, 0], 'busybox'],
      ['empty', '100644', [0, 0], ''],
      ['TRAILER!!!', '0', [0, 0], ''],
    ],
  )
})

test('names and contents of every length keep the alignment', () => {
  for (let length = 0; length < 9; length++) {
    const archive = writeCpio([
      { path: `n${'x'.repeat(length)}`, kind: 'file', content: Buffer.alloc(length, 'c') },
      { path: 'after', kind: 'folder' },
    ])
    assert.is(archive.length % 4, 0)
    const members = readCpio(archive)
    assert.equal([members[0]?.content, members[1]?.path, members.length], ['c'.repeat(length), 'after', 3])
  }
})

test('the same entries give the same bytes', () => {
  const entries: CpioEntry[] = [{ path: 'a', kind: 'file', content: Buffer.from('x') }]
  assert.equal(writeCpio(entries), writeCpio(entries))
})

test.run()
