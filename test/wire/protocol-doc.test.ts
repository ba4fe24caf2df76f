// docs/reference/protocol.md and the code say the same: error table, frame table. A failing line is printed as it must
// stand in the document.
import { readFileSync } from 'node:fs'
import { PADDING_CLASSES } from '../../crypto/channel/record.ts'
import { METHODS } from '../../wire/control.ts'
import { ERRORS } from '../../wire/errors.ts'
import { FRAME, FRAME_LIMITS, type FrameName } from '../../wire/types.ts'
import { VERSIONS } from '../../wire/versions.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('wire/protocol-doc')

const document = readFileSync(new URL('../../docs/reference/protocol.md', import.meta.url), 'utf8')

/** Rows of the table under a heading, without its head. */
function tableUnder(heading: string): string[] {
  const section = document.split(/^## /m).find(part => part.startsWith(heading))
  assert.ok(section, `docs/reference/protocol.md has no section ${heading}`)
  return section
    .split('\n')
    .filter(line => line.startsWith('| '))
    .slice(2)
}

test('the error table is the one of wire/errors.ts, row by row', () => {
  const expected = Object.entries(ERRORS).map(
    ([code, { exit, retryable, meaning, hint }]) => `| ${code} | ${exit} | ${retryable ? 'yes' : 'no'} | ${meaning} | ${hint} |`,
  )
  const rows = tableUnder('Errors')
  for (const row of expected) assert.ok(rows.includes(row), `docs/reference/protocol.md, Errors: a row must read\n${row}`)
  for (const row of rows) assert.ok(expected.includes(row), `docs/reference/protocol.md, Errors: not in wire/errors.ts:\n${row}`)
  assert.equal(rows, expected)
})

test('the frame table has every type with its number and limit', () => {
  const rows = tableUnder('Frames').map(row =>
    row
      .split('|')
      .map(cell => cell.trim())
      .slice(1, 4)
      .join(' '),
  )
  const names = Object.keys(FRAME) as FrameName[]
  assert.equal(
    rows,
    names.map(name => `${name} ${FRAME[name]} ${FRAME_LIMITS[name]}`),
  )
})

test('the RPC table has every method', () => {
  const rows = tableUnder('RPC on the control connection').map(row => row.split('|')[1]!.trim())
  assert.equal([...rows].sort(), Object.keys(METHODS).sort())
})

test('the document names the version and the padding classes', () => {
  assert.match(document, new RegExp(`to the byte\\. Link version ${VERSIONS.link.max}, migration version ${VERSIONS.migration.max}`))
  assert.ok(document.includes(`${PADDING_CLASSES.slice(0, -1).join(', ')} or ${PADDING_CLASSES.at(-1)} bytes`))
})

test.run()
