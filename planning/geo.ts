// Places on the earth and on a flat map. Enters: WGS84 degrees. Leaves: metres east and north of an origin, and back. Pure.
// Equirectangular about the origin: within 0.1 % of the true distance up to some 50 km, which is what edge sites of one operator's region span.

export type GeoPoint = { lat: number; lon: number }
/** Metres east (x) and north (y) of the projection's origin. */
export type MapPoint = { x: number; y: number }

const METERS_PER_DEGREE = 111_195

export type Projection = { toMap(point: GeoPoint): MapPoint; toGeo(point: MapPoint): GeoPoint }

export function createProjection(origin: GeoPoint): Projection {
  const metersPerLon = METERS_PER_DEGREE * Math.cos((origin.lat * Math.PI) / 180)
  return {
    toMap: ({ lat, lon }) => ({ x: (lon - origin.lon) * metersPerLon, y: (lat - origin.lat) * METERS_PER_DEGREE }),
    toGeo: ({ x, y }) => ({ lat: origin.lat + y / METERS_PER_DEGREE, lon: origin.lon + x / metersPerLon }),
  }
}
