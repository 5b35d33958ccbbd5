-- The files of a trail as a table of Athena's. Put the bucket, the account (or
-- ORG-ID/ACCOUNT) and the first day in the places in capitals.

CREATE EXTERNAL TABLE strongroom_cloudtrail (
    eventversion STRING,
    useridentity STRUCT<
        type: STRING, principalid: STRING, arn: STRING, accountid: STRING, accesskeyid: STRING,
        username: STRING, invokedby: STRING,
        sessioncontext: STRUCT<
            sessionissuer: STRUCT<type: STRING, principalid: STRING, arn: STRING, accountid: STRING, username: STRING>>>,
    eventtime STRING,
    eventsource STRING,
    eventname STRING,
    awsregion STRING,
    sourceipaddress STRING,
    useragent STRING,
    errorcode STRING,
    errormessage STRING,
    requestparameters STRING,
    responseelements STRING,
    additionaleventdata STRING,
    requestid STRING,
    eventid STRING,
    readonly STRING,
    resources ARRAY<STRUCT<arn: STRING, accountid: STRING, type: STRING>>,
    eventtype STRING,
    recipientaccountid STRING,
    serviceeventdetails STRING,
    sharedeventid STRING,
    eventcategory STRING,
    tlsdetails STRUCT<tlsversion: STRING, ciphersuite: STRING, clientprovidedhostheader: STRING>
)
PARTITIONED BY (region STRING, day STRING)
ROW FORMAT SERDE 'org.apache.hive.hcatalog.data.JsonSerDe'
STORED AS INPUTFORMAT 'com.amazon.emr.cloudtrail.CloudTrailInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION 's3://BUCKET/AWSLogs/ACCOUNT/CloudTrail/'
TBLPROPERTIES (
    'projection.enabled' = 'true',
    'projection.region.type' = 'injected',
    'projection.day.type' = 'date',
    'projection.day.format' = 'yyyy/MM/dd',
    'projection.day.range' = '2026/01/01,NOW',
    'projection.day.interval' = '1',
    'projection.day.interval.unit' = 'DAYS',
    'storage.location.template' = 's3://BUCKET/AWSLogs/ACCOUNT/CloudTrail/${region}/${day}'
);

-- Who used this key yesterday?
SELECT useridentity.arn, eventname, errorcode, count(*) AS calls
FROM strongroom_cloudtrail
WHERE region = 'us-east-1'
  AND day = date_format(current_date - INTERVAL '1' DAY, '%Y/%m/%d')
  AND any_match(resources, resource -> resource.arn = 'arn:aws:kms:us-east-1:111122223333:key/KEY')
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- Who was denied yesterday, and how often?
SELECT useridentity.arn, eventname, count(*) AS denials
FROM strongroom_cloudtrail
WHERE region = 'us-east-1'
  AND day = date_format(current_date - INTERVAL '1' DAY, '%Y/%m/%d') AND errorcode = 'AccessDenied'
GROUP BY 1, 2 ORDER BY 3 DESC;

-- What was done to keys that cannot be taken back?
SELECT eventtime, useridentity.arn, eventname, resources[1].arn AS key
FROM strongroom_cloudtrail
WHERE region = 'us-east-1'
  AND eventname IN ('ScheduleKeyDeletion', 'DeleteKey', 'DeleteImportedKeyMaterial') AND errorcode IS NULL
ORDER BY eventtime;
