//! Which request does what: HTTP requests to management calls and back.

use serde::{Serialize, de::DeserializeOwned};
use tessera_engine::api::{VolumeChange, VolumeSpec};

use super::{
    http::{Malformed, Request, Response},
    wire::{
        self, ChangeBody, CheckBody, CloneBody, CreateBody, DeleteBody, DiffBody, ErrorBody,
        FailBody, ReaddBody, RollBackBody, SpareAnswer,
    },
};
use crate::{
    access::{JobControl, Management, Resize, SnapshotName},
    failure::{Failure, Kind},
};

/// Answers one request.
pub(super) fn answer(pool: &dyn Management, request: &Request) -> Response {
    let method = request.method.as_str();
    if request.path == wire::STATUS_PATH {
        return match method {
            "GET" => reply(200, pool.status()),
            _ => not_allowed("GET"),
        };
    }
    if request.path == wire::VOLUMES_PATH {
        return match method {
            "GET" => reply(200, pool.volumes()),
            "POST" => reply(201, create(pool, request)),
            _ => not_allowed("GET, POST"),
        };
    }
    if let Some(name) = wire::volume_name(&request.path) {
        return match method {
            "GET" => reply(200, pool.volume(&name)),
            "PATCH" => reply(200, change(pool, &name, request)),
            "DELETE" => reply(200, delete(pool, &name, request)),
            _ => not_allowed("GET, PATCH, DELETE"),
        };
    }
    if request.path == wire::SNAPSHOTS_PATH {
        return match method {
            "GET" => reply(200, pool.snapshots(None)),
            _ => not_allowed("GET"),
        };
    }
    if let Some((name, verb)) = wire::snapshot_name(&request.path) {
        return snapshot_call(pool, &name, verb, request);
    }
    if request.path == wire::MEMBERS_PATH {
        return match method {
            "GET" => reply(200, pool.status().map(|answer| answer.pool.members)),
            "POST" => reply(201, add_spare(pool, request)),
            _ => not_allowed("GET, POST"),
        };
    }
    if let Some((member, verb)) = wire::numbered(&request.path, wire::MEMBERS_PATH) {
        return member_call(pool, member, verb, request);
    }
    if request.path == wire::JOBS_PATH {
        return match method {
            "GET" => reply(200, pool.jobs()),
            _ => not_allowed("GET"),
        };
    }
    if let Some((job, verb)) = wire::numbered(&request.path, wire::JOBS_PATH) {
        return job_call(pool, job, verb, method);
    }
    let started = wire::STARTED.into_iter();
    if let Some(kind) = started
        .clone()
        .find(|kind| request.path == wire::kind_path(*kind))
    {
        return match method {
            "GET" => reply(200, pool.newest_job(kind)),
            "POST" => reply(200, pool.start_job(kind)),
            "DELETE" => reply(200, pool.cancel_newest(kind)),
            _ => not_allowed("GET, POST, DELETE"),
        };
    }
    if request.path == wire::CHECK_PATH {
        return match method {
            "GET" => reply(200, pool.check()),
            "POST" => reply(
                200,
                read_body::<CheckBody>(request).and_then(|body| pool.start_check(body.data)),
            ),
            _ => not_allowed("GET, POST"),
        };
    }
    if request.path == wire::INDEX_PATH {
        return match method {
            "GET" => reply(200, pool.index()),
            "POST" => reply(200, pool.rebuild_index()),
            "DELETE" => reply(200, pool.drop_index()),
            _ => not_allowed("GET, POST, DELETE"),
        };
    }
    if request.path == wire::SETTINGS_PATH {
        return match method {
            "GET" => reply(200, pool.settings()),
            "PATCH" => reply(
                200,
                read_body(request).and_then(|change| pool.change_settings(&change)),
            ),
            _ => not_allowed("GET, PATCH"),
        };
    }
    nothing_here()
}

fn nothing_here() -> Response {
    refuse(&Failure::new(
        Kind::NotFound,
        "There is nothing at this path; see docs/control-api.md",
    ))
}

fn add_spare(pool: &dyn Management, request: &Request) -> Result<SpareAnswer, Failure> {
    let index = pool.add_spare(&read_body(request)?)?;
    Ok(SpareAnswer { index })
}

/// Of a volume's snapshots, or of one.
fn snapshot_call(
    pool: &dyn Management,
    name: &str,
    verb: Option<&str>,
    request: &Request,
) -> Response {
    let method = request.method.as_str();
    let Ok(name) = name.parse::<SnapshotName>() else {
        return match (verb, method) {
            (None, "GET") => reply(200, pool.snapshots(Some(name))),
            (None, _) => not_allowed("GET"),
            _ => nothing_here(),
        };
    };
    match (verb, method) {
        (None, "POST") => reply(201, pool.create_snapshot(&name)),
        (None, "DELETE") => reply(200, pool.delete_snapshot(&name)),
        (None, _) => not_allowed("POST, DELETE"),
        (Some("rollback"), "POST") => reply(
            200,
            body_or_default::<RollBackBody>(request)
                .and_then(|body| pool.roll_back(&name, body.force)),
        ),
        (Some("clone"), "POST") => reply(
            201,
            read_body::<CloneBody>(request).and_then(|body| pool.clone_snapshot(&name, &body.name)),
        ),
        (Some("diff"), "POST") => reply(
            200,
            read_body::<DiffBody>(request)
                .and_then(|body| pool.snapshot_diff(&name, &body.to, body.part)),
        ),
        (Some("rollback" | "clone" | "diff"), _) => not_allowed("POST"),
        _ => nothing_here(),
    }
}

fn member_call(
    pool: &dyn Management,
    member: u32,
    verb: Option<&str>,
    request: &Request,
) -> Response {
    let method = request.method.as_str();
    match (verb, method) {
        (None, "DELETE") => reply(200, pool.remove_member(member)),
        (None, _) => not_allowed("DELETE"),
        (Some("fail"), "POST") => reply(
            200,
            read_body::<FailBody>(request).and_then(|body| pool.fail_member(member, &body.reason)),
        ),
        (Some("replace"), "POST") => reply(
            200,
            read_body(request).and_then(|device| pool.replace_member(member, &device)),
        ),
        (Some("readd"), "POST") => reply(
            200,
            read_body::<ReaddBody>(request).and_then(|body| pool.readd_member(member, &body.path)),
        ),
        (Some("fail" | "replace" | "readd"), _) => not_allowed("POST"),
        _ => nothing_here(),
    }
}

fn job_call(pool: &dyn Management, job: u64, verb: Option<&str>, method: &str) -> Response {
    let control = match verb {
        None if method == "GET" => return reply(200, pool.job(job)),
        None => return not_allowed("GET"),
        Some("pause") => JobControl::Pause,
        Some("resume") => JobControl::Resume,
        Some("cancel") => JobControl::Cancel,
        Some(_) => return nothing_here(),
    };
    match method {
        "POST" => reply(200, pool.control_job(job, control)),
        _ => not_allowed("POST"),
    }
}

fn create(
    pool: &dyn Management,
    request: &Request,
) -> Result<tessera_engine::api::VolumeInfo, Failure> {
    let spec = VolumeSpec::from(read_body::<CreateBody>(request)?);
    pool.create_volume(&spec)
}

fn change(
    pool: &dyn Management,
    name: &str,
    request: &Request,
) -> Result<tessera_engine::api::VolumeInfo, Failure> {
    let body = read_body::<ChangeBody>(request)?;
    let treatment = body.treatment();
    let treats = treatment != VolumeChange::default();
    match (body.size_bytes, body.force, &body.name, treats) {
        (Some(size_bytes), force, None, false) => {
            pool.resize_volume(name, Resize { size_bytes, force })
        }
        (None, false, Some(new), false) => pool.rename_volume(name, new),
        (None, false, None, true) => pool.set_volume(name, &treatment),
        _ => Err(Failure::new(
            Kind::InvalidArgument,
            "A change is size_bytes, with force to shrink, or name, or dedup, compression and allow_shrink",
        )),
    }
}

fn delete(pool: &dyn Management, name: &str, request: &Request) -> Result<(), Failure> {
    let body = body_or_default::<DeleteBody>(request)?;
    pool.delete_volume(name, body.snapshots)
}

fn body_or_default<T: DeserializeOwned + Default>(request: &Request) -> Result<T, Failure> {
    match request.body.is_empty() {
        true => Ok(T::default()),
        false => read_body(request),
    }
}

fn read_body<T: DeserializeOwned>(request: &Request) -> Result<T, Failure> {
    serde_json::from_slice(&request.body).map_err(|error| {
        Failure::new(
            Kind::InvalidArgument,
            format!("The request's body is wrong: {error}"),
        )
    })
}

fn reply(status: u16, result: Result<impl Serialize, Failure>) -> Response {
    match result {
        Ok(value) => Response {
            status,
            allow: None,
            body: json(&value),
        },
        Err(failure) => refuse(&failure),
    }
}

/// The answer to a failed operation.
pub(super) fn refuse(failure: &Failure) -> Response {
    let status = match failure.kind {
        Kind::NotFound => 404,
        Kind::AlreadyExists | Kind::Busy => 409,
        Kind::InvalidArgument => 400,
        Kind::ReadOnly => 403,
        Kind::NoSpace => 507,
        Kind::Failed => 503,
        Kind::Io | Kind::Damaged => 500,
    };
    refuse_as(status, failure)
}

/// The answer to bytes that are no request.
pub(super) fn refuse_malformed(malformed: &Malformed) -> Response {
    refuse_as(
        malformed.status,
        &Failure::new(Kind::InvalidArgument, malformed.message),
    )
}

/// An answer with a status of its own.
pub(super) fn refuse_as(status: u16, failure: &Failure) -> Response {
    let body = json(&ErrorBody {
        error: failure.clone(),
    });
    Response {
        status,
        allow: None,
        body,
    }
}

fn not_allowed(methods: &'static str) -> Response {
    let failure = Failure::new(
        Kind::InvalidArgument,
        format!("Only {methods} is possible at this path"),
    );
    Response {
        allow: Some(methods),
        ..refuse_as(405, &failure)
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of strings and numbers always have a JSON form.
    let mut body = serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec());
    body.push(b'\n');
    body
}
