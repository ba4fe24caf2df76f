// A recorded drive. Enters: the text of a CSV file, in the own format (`seconds,lat,lon[,cell][,rttMs]`) or that of
// G-NetTrack Pro (Timestamp, Longitude, Latitude, NODEHEX, CELLHEX, PINGAVG). Leaves: columns of numbers, times
// increasing from 0. Pure. Rows without a place are skipped.
import { GodwitError } from '../../wire/errors.ts'

export type DriveTrace = {
  name: string
  seconds: Float64Array
  lat: Float64Array
  lon: Float64Array
  /** Serving cell; '' if the file has none. */
  cells: string[]
  /** Measured RTT; NaN without a measurement. */
  rttMs: Float64Array
}

const ROWS_MAX = 200_000

type Row = { seconds: number; lat: number; lon: number; cell: string; rttMs: number }

/** CONFIG_INVALID if it is not a trace: no known header, fewer than two rows, more than ROWS_MAX. */
export function parseDriveTrace(name: string, text: string): DriveTrace {
  const lines = text.split('\n')
  const head = (lines[0] ?? '').trim().split(',')
  const read = head.includes('Timestamp') ? netTrackReader(head) : ownReader(head)
  if (!read)
    throw new GodwitError(
      'CONFIG_INVALID',
      `${name}: not a trace: its first line must name the columns seconds,lat,lon or Timestamp,Longitude,Latitude`,
    )
  if (lines.length > ROWS_MAX) throw new GodwitError('CONFIG_INVALID', `${name}: more than ${ROWS_MAX} rows`)
  const rows: Row[] = []
  for (const line of lines.slice(1)) {
    const row = read(line.trim().split(','))
    const isPlace = Math.abs(row.lat) <= 90 && Math.abs(row.lon) <= 180 && (row.lat !== 0 || row.lon !== 0)
    if (!isPlace || !Number.isFinite(row.seconds)) continue
    const last = rows.at(-1)
    if (last && row.seconds < last.seconds) continue
    // Of several rows with the same second the last one counts.
    if (last && row.seconds === last.seconds) rows.pop()
    rows.push(row)
  }
  if (rows.length < 2) throw new GodwitError('CONFIG_INVALID', `${name}: fewer than two places`)
  const start = rows[0]!.seconds
  return {
    name,
    seconds: Float64Array.from(rows, row => row.seconds - start),
    lat: Float64Array.from(rows, row => row.lat),
    lon: Float64Array.from(rows, row => row.lon),
    cells: rows.map(row => row.cell),
    rttMs: Float64Array.from(rows, row => row.rttMs),
  }
}

/** The trace as CSV in the own format: parseDriveTrace(writeTrace(t)) equals t. */
export function writeTrace({ seconds, lat, lon, cells, rttMs }: DriveTrace): string {
  const rows = Array.from(seconds, (second, at) => {
    const rtt = rttMs[at]!
    return `${second},${lat[at]},${lon[at]},${cells[at]},${Number.isNaN(rtt) ? '' : rtt}\n`
  })
  return `seconds,lat,lon,cell,rttMs\n${rows.join('')}`
}

type Reader = (fields: string[]) => Row

function ownReader(head: string[]): Reader | undefined {
  const [seconds, lat, lon, cell, rtt] = ['seconds', 'lat', 'lon', 'cell', 'rttMs'].map(column => head.indexOf(column))
  if (seconds! < 0 || lat! < 0 || lon! < 0) return undefined
  return fields => ({
    seconds: number(fields[seconds!]),
    lat: number(fields[lat!]),
    lon: number(fields[lon!]),
    cell: cell! < 0 ? '' : (fields[cell!] ?? ''),
    rttMs: rtt! < 0 ? Number.NaN : number(fields[rtt!]),
  })
}

function netTrackReader(head: string[]): Reader | undefined {
  const columns = ['Timestamp', 'Latitude', 'Longitude', 'NODEHEX', 'CELLHEX', 'PINGAVG'].map(column => head.indexOf(column))
  const [time, lat, lon, node, cell, ping] = columns as [number, number, number, number, number, number]
  if (lat < 0 || lon < 0) return undefined
  const known = (field: string | undefined) => (field && field !== '-' ? field : undefined)
  return fields => {
    const id = [known(fields[node]), known(fields[cell])]
    return {
      seconds: timestamp(fields[time] ?? ''),
      lat: number(fields[lat]),
      lon: number(fields[lon]),
      cell: id.includes(undefined) ? '' : id.join('/'),
      rttMs: number(fields[ping]),
    }
  }
}

const number = (field: string | undefined): number => (field === undefined || field === '' ? Number.NaN : Number(field))

/** 'YYYY.MM.DD_HH.MM.SS' as seconds. */
function timestamp(text: string): number {
  const parts = text.split(/[._]/).map(Number)
  if (parts.length !== 6) return Number.NaN
  const [year, month, day, hour, minute, second] = parts as [number, number, number, number, number, number]
  return Date.UTC(year, month - 1, day, hour, minute, second) / 1000
}
